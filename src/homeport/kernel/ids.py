"""Object ids: ``<prefix>-<alphanumerics>``, exactly one dash.

The official client splits ids at the dash, matches app ids against 22 alphanumerics, and
recognises remote frames by task ids of 26 upper-case alphanumerics that do not end in ``V``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from typing import Final

_ALPHABET: Final = string.digits + string.ascii_letters
_UPPER: Final = string.digits + string.ascii_uppercase
_LENGTH: Final = 22
_TASK_LENGTH: Final = 26
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID_LENGTH: Final = 26

APP: Final = "ap"
FUNCTION: Final = "fu"
CLASS: Final = "cs"
DEFINITION: Final = "de"
CALL: Final = "fc"
INPUT: Final = "in"
IMAGE: Final = "im"
MOUNT: Final = "mo"
SECRET: Final = "st"
ENVIRONMENT: Final = "en"
BLOB: Final = "bl"
TASK: Final = "ta"
WORKSPACE: Final = "ac"
NODE: Final = "no"
DICT: Final = "di"
QUEUE: Final = "qu"
VOLUME: Final = "vo"
VOLUME_CHANGE: Final = "vc"
SANDBOX: Final = "sb"
SHARED_VOLUME: Final = "sv"

_ID: Final = re.compile(r"^([a-z]{2})-([0-9A-Za-z]{16,32})$")


def new(prefix: str) -> str:
    """A fresh random id with ``prefix`` (131 bits; tasks 134 bits)."""
    if prefix == TASK:
        body = "".join(secrets.choice(_UPPER) for _ in range(_TASK_LENGTH - 1))
        return f"{prefix}-{body}{secrets.choice(_UPPER.replace('V', ''))}"
    return f"{prefix}-{''.join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))}"


class Series:
    """Ids of one kind for things that do not outlive the process: quick, in order, no secrets."""

    def __init__(self, prefix: str) -> None:
        self._start = f"{prefix}-{''.join(secrets.choice(_ALPHABET) for _ in range(10))}"
        self._count = 0

    def next(self) -> str:
        """The next one."""
        self._count += 1
        return f"{self._start}{self._count:012d}"


def derive(prefix: str, *parts: str | bytes) -> str:
    """The same id for the same ``parts``, always: identity by content or by idempotency key."""
    return f"{prefix}-{_written(_number(parts), _ALPHABET, _LENGTH)}"


def derive_task(*parts: str | bytes, sandbox_v2: bool) -> str:
    """A task's id as ``derive`` makes it: it ends in ``V`` for a second-generation sandbox only."""
    body = _written(_number(parts), _UPPER, _TASK_LENGTH)
    end = "V" if sandbox_v2 else body[-1].replace("V", "W")
    return f"{TASK}-{body[:-1]}{end}"


def derive_ulid(prefix: str, *parts: str | bytes) -> str:
    """As ``derive``, in the shape of a ULID: 26 digits of Crockford's base 32, less than 2^128.

    Clients tell sandboxes of the second generation by it.
    """
    number = _number(parts) >> 128
    return f"{prefix}-{_written(number, _CROCKFORD, _ULID_LENGTH)[::-1]}"


def is_id(value: str, prefix: str) -> bool:
    """Whether ``value`` is a well-formed id of kind ``prefix``."""
    match = _ID.fullmatch(value)
    return match is not None and match.group(1) == prefix


def _number(parts: tuple[str | bytes, ...]) -> int:
    """256 bits that stand for ``parts``."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "big")


def _written(number: int, alphabet: str, length: int) -> str:
    """The lowest ``length`` digits of ``number`` in the base of ``alphabet``, lowest first."""
    characters: list[str] = []
    for _ in range(length):
        number, index = divmod(number, len(alphabet))
        characters.append(alphabet[index])
    return "".join(characters)
