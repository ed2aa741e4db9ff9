"""Homeport: a serverless compute platform for AI on machines you own."""

__version__ = "0.1.0"
