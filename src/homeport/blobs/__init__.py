"""Blobs: payloads too big for a message, moved over signed HTTP URLs."""
