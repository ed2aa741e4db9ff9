"""Installation keys: random bytes in a file that only its owner may read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from homeport.kernel.errors import InvalidError


def read_or_create(path: Path, length: int = 32) -> bytes:
    """The key in ``path``; made on first use, with mode 0600, safe against a racing process.

    Raises ``InvalidError`` if the file holds something else: a damaged key must not be replaced
    silently, because what it protects would be lost.
    """
    try:
        return _read(path, length)
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(length))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike rename, never replaces the key of a faster process
        except FileExistsError:
            pass
    finally:
        temporary.unlink(missing_ok=True)
    return _read(path, length)


def _read(path: Path, length: int) -> bytes:
    key = path.read_bytes()
    if len(key) != length:
        raise InvalidError(f"the key file {path} is damaged: {len(key)} bytes instead of {length}")
    return key
