"""Tasks: one container's life as the server sees it."""
