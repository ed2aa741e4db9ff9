"""Volumes on a node: layers of committed files, mounted in containers, committed from there."""
