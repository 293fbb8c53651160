"""ALFWorld's text games: a native engine, generated houses, official files, and the task built on them."""
