"""What differs by the version of the calling client (``x-modal-client-version``).

Only clients of type CLIENT and CONTAINER carry a meaningful version: the JavaScript and Go SDKs
always say ``1.0.0``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from homeport.kernel.errors import ConflictError, InvalidError

Version = tuple[int, int, int]

OLDEST: Final[Version] = (1, 0, 0)
UNKNOWN: Final[Version] = (0, 0, 0)

_VERSION: Final = re.compile(r"^(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?")

_BUILDERS_SINCE: Final[list[tuple[str, Version]]] = [
    ("2023.12", (0, 0, 0)),
    ("2024.04", (0, 0, 0)),
    ("2024.10", (0, 0, 0)),
    ("2025.06", (1, 1, 0)),
    ("2026.10", (1, 6, 3)),
]
"""Image builder versions and the client that first knew each; an unknown one is fatal there."""

KNOWN_BUILDERS: Final = tuple(name for name, _ in _BUILDERS_SINCE)


@lru_cache(maxsize=256)
def parse(text: str) -> Version:
    """``1.6.4`` (with anything after it) as a comparable triple; ``UNKNOWN`` if it is not one."""
    match = _VERSION.match(text)
    if match is None:
        return UNKNOWN
    major, minor, patch = match.groups()
    return int(major), int(minor), int(patch or 0)


def at_least(text: str, wanted: Version) -> bool:
    """Whether client version ``text`` is ``wanted`` or newer (an unknown one is not)."""
    return parse(text) >= wanted


@lru_cache(maxsize=256)
def is_supported(text: str) -> bool:
    """Whether a client of version ``text`` is served; unknown versions are given a try."""
    version = parse(text)
    return version == UNKNOWN or version >= OLDEST


def require_supported(text: str) -> None:
    """Raise ``ConflictError`` (the client sees FAILED_PRECONDITION) for clients before 1.0."""
    if not is_supported(text):
        raise ConflictError(
            f"modal client {text[:32]} is too old for Homeport, which serves clients from 1.0 on; "
            "upgrade it with `pip install -U modal`"
        )


def knows_builder(client_version: str, builder: str) -> bool:
    """Whether a client of that version can build images of builder version ``builder``."""
    version = parse(client_version)
    if version == UNKNOWN:
        return builder in KNOWN_BUILDERS
    return any(name == builder and version >= since for name, since in _BUILDERS_SINCE)


def image_builder_version_for(client_version: str) -> str:
    """The builder version to answer with when none is configured: ``2024.10`` for 1.0.x clients,
    else ``2025.06``."""
    version = parse(client_version)
    return "2024.10" if UNKNOWN < version < (1, 1, 0) else "2025.06"


def check_builder(version: str) -> str:
    """``version``, if it is empty or an image builder version that some client knows.

    Raises ``InvalidError``.
    """
    if version and version not in KNOWN_BUILDERS:
        raise InvalidError(
            f"there is no image builder version {version[:20]!r}; "
            f"possible are {', '.join(KNOWN_BUILDERS)}"
        )
    return version
