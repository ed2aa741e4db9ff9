"""The pure rules of volumes: versions, paths, sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from homeport.kernel import ids
from homeport.kernel.errors import InvalidError
from homeport.link.volumes import BLOCK_BYTES, HASH_BYTES, block_count
from homeport.objects.model import Kind, StoredObject

VOLUME: Final = Kind("volume", ids.VOLUME, "Volume")
PATH_BYTES_MAX: Final = 4_096
COMPONENT_BYTES_MAX: Final = 255
"""What Linux takes in one path and in one name: containers must be able to hold every file."""
FILE_BYTES_MAX: Final = 1 << 40
"""Largest file, 1 TiB."""
TOMBSTONE_S: Final = 7 * 86400.0
"""How long it is remembered what was removed: nodes that are further behind fetch everything."""
DEFAULT_VERSION: Final = 2
"""What a new volume is if the client does not say: blocks are uploaded faster than whole files."""


class Head(msgspec.Struct, frozen=True):
    """Where a volume's tree is. ``revision`` grows with every change of its files; ``floor`` is
    the newest one whose removals are no longer known one by one."""

    revision: int
    floor: int


class NewFile(msgspec.Struct, frozen=True):
    """A file as a client announces it. ``hashes`` as in ``VolumeEntry``."""

    path: str
    size: int
    mode: int
    hashes: bytes


def version_details(version: int) -> bytes:
    """What is kept of the version a volume is created with; 0 means none was asked for.

    It is the protocol its clients use; the files are stored in the same way.
    """
    if version not in (0, 1, 2):
        raise InvalidError(f"there is no volume version {version}: use 1 or 2, or leave it out")
    return b"%d" % (version or DEFAULT_VERSION)


def version_of(item: StoredObject) -> int:
    """1 or 2."""
    return int(item.details or DEFAULT_VERSION)


def normalised(path: str) -> str:
    """``path`` relative to the volume's root, without ``.``, doubled and outer slashes.

    The root is the empty string. Raises ``InvalidError`` for what no file can be called.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidError(f"the path {path[:200]!r} contains '..', which leads out of the volume")
    result = "/".join(parts)
    if "\0" in result or any(len(part.encode()) > COMPONENT_BYTES_MAX for part in parts):
        raise InvalidError(
            f"{path[:200]!r} is not a path: names have no NUL and up to {COMPONENT_BYTES_MAX} bytes"
        )
    if len(result.encode()) > PATH_BYTES_MAX:
        raise InvalidError(f"the path {path[:100]!r}… is longer than {PATH_BYTES_MAX} bytes")
    return result


def file_path(path: str) -> str:
    """``normalised(path)``; raises ``InvalidError`` for the root, which is no file."""
    result = normalised(path)
    if not result:
        raise InvalidError(f"{path!r} is the volume itself; name a file in it")
    return result


def split(path: str) -> tuple[str, str]:
    """Directory and name of a normalised path."""
    parent, _, name = path.rpartition("/")
    return parent, name


def join(parent: str, name: str) -> str:
    """The path of ``name`` in the directory ``parent``."""
    return f"{parent}/{name}" if parent else name


def ancestors(paths: Iterable[str]) -> set[str]:
    """All directories above ``paths``, without the root."""
    found: set[str] = set()
    for path in paths:
        parent = split(path)[0]
        while parent and parent not in found:
            found.add(parent)
            parent = split(parent)[0]
    return found


def is_inside(path: str, directory: str) -> bool:
    """Whether ``path`` is ``directory`` or below it."""
    return not directory or path == directory or path.startswith(directory + "/")


def check_blocks(file: NewFile) -> None:
    """Raise ``InvalidError`` unless the file has as many hashes as its size makes blocks."""
    if not 0 <= file.size <= FILE_BYTES_MAX:
        raise InvalidError(f"{file.path}: a file has 0 to {FILE_BYTES_MAX} bytes, not {file.size}")
    wanted = block_count(file.size)
    if len(file.hashes) != wanted * HASH_BYTES:
        raise InvalidError(
            f"{file.path}: {file.size} bytes are {wanted} blocks of {BLOCK_BYTES} bytes, "
            f"but {len(file.hashes) // HASH_BYTES} block hashes were sent"
        )


def hex_hashes(hashes: bytes) -> list[str]:
    """The single hashes of a row of hashes, in hex."""
    return [hashes[start : start + HASH_BYTES].hex() for start in range(0, len(hashes), HASH_BYTES)]
