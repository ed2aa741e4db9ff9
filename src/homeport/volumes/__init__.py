"""Volumes: shared file trees, versioned by commits, their contents in blocks by hash."""
