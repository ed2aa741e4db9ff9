"""Mounts: sets of files that appear in containers, addressed by content."""
