"""Dicts: values by key, shared by all programs of the installation."""
