"""Sandboxes: containers that run a program of their creator's choice and nothing of ours."""
