"""Environments: named divisions of the workspace in which apps and objects live."""
