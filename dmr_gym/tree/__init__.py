"""The exact routing tree of a task, its oracle, and how far a router is from it."""
