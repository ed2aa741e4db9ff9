"""Domains as people list them: ``example.com``, ``*.example.com`` (all under it), ``*`` (all)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from homeport.kernel.errors import InvalidError

EVERY: Final = "*"
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_CHARS_MAX: Final = 253


def pattern(text: str) -> str:
    """An entry of a list in its one form: lower case, letters beyond ASCII as ``xn--``.

    Raises ``InvalidError`` for what is no domain: an address, a URL, a ``*`` in the middle.
    """
    entry = text.strip()
    if entry == EVERY:
        return entry
    wildcard = entry.startswith("*.")
    try:
        name = plain(entry[2:] if wildcard else entry)
    except ValueError:
        name = ""
    labels = name.split(".")
    if not name or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise InvalidError(
            f"{text[:80]!r} is not a domain such as example.com, *.example.com or *; networks are "
            "listed in outbound_cidr_allowlist"
        )
    return f"*.{name}" if wildcard else name


def plain(name: str) -> str:
    """A name as it is compared: lower case, ASCII, without the root's dot. Raises ``ValueError``."""
    name = name.rstrip(".").lower()
    if not name.isascii():
        name = name.encode("idna").decode()
    if len(name) > _CHARS_MAX:
        raise ValueError("a name that DNS has no room for")
    return name


def is_listed(name: str, patterns: Iterable[str]) -> bool:
    """Whether the patterns (as ``pattern`` gives them) have ``name`` (as ``plain`` gives it)."""
    return any(
        entry in (EVERY, name) or (entry.startswith("*.") and name.endswith(entry[1:]))
        for entry in patterns
    )
