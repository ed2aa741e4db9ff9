"""Objects that programs keep on the server, and how they come and go."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

import msgspec

from homeport.kernel.errors import InvalidError

NAME_CHARS_MAX: Final = 64
PAGE_MAX: Final = 100
"""Objects in one page of a listing; clients ask for no more."""
CLOCK_SLACK_S: Final = 60.0
"""A client whose clock is behind the server's still sees the newest objects."""
TICK_S: Final = 1e-6
"""Least distance of two creation times: listings page by them."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_APP_ID: Final = re.compile(r"ap-[A-Za-z0-9]{22}")


class Kind(NamedTuple):
    """One sort of object. Names are unique within a kind and environment."""

    key: str
    """What the table calls it, e.g. ``dict``."""
    prefix: str
    """Of its ids (``kernel.ids``)."""
    noun: str
    """What messages call it, e.g. ``Dict``."""


class Creation(Enum):
    """What to do about an object that is asked for."""

    LOOK_UP = "look up"
    """It must exist."""
    IF_MISSING = "create if missing"
    FAIL_IF_EXISTS = "create"
    EPHEMERAL = "ephemeral"
    """A new nameless one that lives while its client says so (``…Heartbeat``)."""


class StoredObject(msgspec.Struct, frozen=True):
    """One object. ``created_at`` is in Unix seconds and unlike any other of its kind and
    environment; ``name`` is empty for ephemeral objects."""

    id: str
    kind: str
    environment_id: str
    name: str
    created_at: float
    created_by: str = ""
    details: bytes = b""
    """What the feature keeps with it; opaque here."""

    @property
    def is_ephemeral(self) -> bool:
        return not self.name


def check_name(kind: Kind, name: str) -> None:
    """Raise ``InvalidError`` if an object may not be called ``name``."""
    if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name) or _APP_ID.fullmatch(name):
        raise InvalidError(
            f"{name[:100]!r} is not a {kind.noun} name: use 1 to {NAME_CHARS_MAX} letters, digits, "
            "dashes, dots and underscores, and nothing that looks like an app id"
        )
