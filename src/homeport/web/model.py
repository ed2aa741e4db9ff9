"""What a proxy token is: it opens web functions that are not for everybody."""

from __future__ import annotations

from dataclasses import dataclass

NAME_CHARS_MAX = 128


@dataclass(frozen=True, slots=True)
class ProxyToken:
    """A token for callers. ``created_at`` is in Unix seconds; of the secret only a hash is kept.

    One that is ``scoped`` opens the web functions of its environments (ids) only.
    """

    token_id: str
    secret_hash: bytes
    name: str
    created_at: float
    scoped: bool = False
    environments: frozenset[str] = frozenset()
