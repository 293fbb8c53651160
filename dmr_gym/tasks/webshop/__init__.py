"""WebShop's text environment without Java or Flask, at any catalogue size, on official or generated data."""
