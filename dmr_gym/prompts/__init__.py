"""Prompt text between worlds and language models: pure functions of strings."""
