"""Entries of Dicts and their limits. Keys and values are opaque: clients pickle them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from homeport.kernel import ids
from homeport.kernel.errors import InvalidError
from homeport.objects.model import Kind

DICT: Final = Kind("dict", ids.DICT, "Dict")

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB

KEY_BYTES_MAX: Final = 256 * _KIB
VALUE_BYTES_MAX: Final = 100 * _MIB
UPDATES_MAX: Final = 10_000
"""Entries in one ``DictUpdate``."""
DICT_BYTES_MAX: Final = 10 * _KIB * _MIB
"""Keys and values of one Dict together."""
INLINE_BYTES_MAX: Final = _MIB
"""Longer values are files: they would hold up everybody else's commits."""

LIFETIME_S: Final = 7 * 86400.0
"""An entry that is neither read nor written for so long goes."""
TOUCH_S: Final = 3600.0
"""How exactly the last use is recorded: reads between are not worth a write. Entries live that
much longer rather than shorter."""


class Entry(NamedTuple):
    """One key with its value, or where the value is. ``used_at`` is in Unix seconds."""

    key: bytes
    size: int
    """Bytes of key and value."""
    used_at: float
    file: str
    """SHA-256 of the file with the value; empty: it is in the table."""
    value: bytes | None
    """``None``: it is not in memory."""


def is_expired(used_at: float, now: float) -> bool:
    """Whether an entry that was last used then is gone."""
    return used_at < now - LIFETIME_S - TOUCH_S


def check_key(key: bytes) -> None:
    """Raise ``InvalidError`` for a key that is too long."""
    if len(key) > KEY_BYTES_MAX:
        raise InvalidError(
            f"the key has {len(key)} bytes when pickled; a Dict takes keys up to {KEY_BYTES_MAX} "
            "(status = '413')"
        )


def check_updates(updates: Sequence[tuple[bytes, bytes]], *, if_not_exists: bool) -> None:
    """Raise ``InvalidError`` for updates beyond the limits.

    Clients make a ``RequestSizeError`` of an error that contains ``status = '413'``.
    """
    if if_not_exists and len(updates) != 1:
        raise InvalidError(
            f"only one entry at a time can be put if it does not exist, not {len(updates)}"
        )
    if len(updates) > UPDATES_MAX:
        raise InvalidError(
            f"{len(updates)} entries at once are too many: up to {UPDATES_MAX} are possible "
            "(status = '413')"
        )
    for key, value in updates:
        check_key(key)
        if len(value) > VALUE_BYTES_MAX:
            raise InvalidError(
                f"the value has {len(value)} bytes when pickled; a Dict takes values up to "
                f"{VALUE_BYTES_MAX // _MIB} MiB (status = '413')"
            )
