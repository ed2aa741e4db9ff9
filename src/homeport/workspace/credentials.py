"""``<home>/credentials.toml``: the secrets of an installation, readable by its owner only."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from homeport.kernel.errors import InvalidError

FILE_NAME = "credentials.toml"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a client and a node on this machine need to reach the server."""

    token_id: str = ""
    token_secret: str = ""
    node_token: str = ""
    """Secret of the node link."""
    server_url: str = ""
    """Filled by whoever starts the server."""


def path_in(home: Path) -> Path:
    """Where the credentials of the installation in ``home`` are."""
    return home / FILE_NAME


def read(home: Path) -> Credentials | None:
    """The credentials of the installation in ``home``; ``None`` before its first start.

    Raises ``InvalidError`` naming the file if it cannot be understood.
    """
    file = path_in(home)
    try:
        values: dict[str, Any] = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidError(f"{file} is not valid TOML: {error}") from None
    try:
        return msgspec.convert(values, Credentials)
    except msgspec.ValidationError as error:
        raise InvalidError(f"{file} does not fit: {error}") from None


def write(home: Path, credentials: Credentials) -> None:
    """Replace the file in one step; it is never readable by others, not even for a moment."""
    home.mkdir(parents=True, exist_ok=True)
    file = path_in(home)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    # JSON's strings are TOML's basic strings.
    lines = [
        f"{name} = {json.dumps(value)}" for name, value in msgspec.to_builtins(credentials).items()
    ]
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
    temporary.replace(file)
