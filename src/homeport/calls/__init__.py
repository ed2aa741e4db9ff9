"""Calls, their inputs and outputs: the durable record of all work."""
