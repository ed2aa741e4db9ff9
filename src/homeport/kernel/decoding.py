"""What is caught around decoding bytes that somebody else wrote, or that a crash left."""

from __future__ import annotations

from typing import Final

UNREADABLE: Final = (ValueError, RecursionError)
"""Beside errors of its own, which are ``ValueError``, msgspec raises ``UnicodeDecodeError`` for
strings that are none and ``RecursionError`` for what is nested too deeply."""
