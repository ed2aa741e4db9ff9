"""The messages between server and node, and their framing. Imports kernel only."""
