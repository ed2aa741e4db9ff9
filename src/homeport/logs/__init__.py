"""Logs: what containers print, live and from history."""
