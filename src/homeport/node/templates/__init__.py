"""Containers that wait, with the client imported, for the task that will be theirs."""
