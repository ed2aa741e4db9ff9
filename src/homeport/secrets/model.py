"""Secrets and their rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from homeport.kernel.errors import InvalidError, NotFoundError

KEY_CHARS_MAX: Final = 16_384
VALUE_CHARS_MAX: Final = 32_768
ENTRIES_MAX: Final = 1_000
NAME_CHARS_MAX: Final = 64
PAGE_MAX: Final = 100

_KEY: Final = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_NAME: Final = re.compile(r"^[A-Za-z0-9_.-]+$")


class Secret(msgspec.Struct, frozen=True):
    """A secret without its values. Times are Unix seconds; 0 = never used.

    ``name`` is empty for the anonymous secrets of apps (``app_id``) and of single clients.
    """

    id: str
    name: str
    environment_id: str
    app_id: str
    keys: tuple[str, ...]
    created_at: float
    created_by: str
    last_used_at: float


def check_values(values: Mapping[str, str]) -> None:
    """Raise ``InvalidError`` naming the first entry that cannot be an environment variable."""
    if len(values) > ENTRIES_MAX:
        raise InvalidError(f"a secret can have {ENTRIES_MAX} entries, not {len(values)}")
    for key, value in values.items():
        if not _KEY.fullmatch(key) or len(key) > KEY_CHARS_MAX:
            raise InvalidError(
                f"{key[:100]!r} cannot name an environment variable: "
                "use letters, digits and underscores, and no digit in front"
            )
        if len(value) > VALUE_CHARS_MAX or "\0" in value:
            raise InvalidError(
                f"the value of {key} must have up to {VALUE_CHARS_MAX} characters and no NUL"
            )


def check_name(name: str) -> None:
    """Raise ``InvalidError`` if a secret may not be called ``name``."""
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX:
        raise InvalidError(
            f"{name[:100]!r} is not a secret name: use up to {NAME_CHARS_MAX} letters, digits, "
            "dashes, dots and underscores"
        )


def check_required(secret: Secret, required: Sequence[str]) -> None:
    """Raise ``NotFoundError`` naming the keys of ``required`` that the secret lacks."""
    missing = [key for key in required if key not in secret.keys]
    if missing:
        raise NotFoundError(f"Secret {secret.name!r} is missing key(s): {', '.join(missing)}")
