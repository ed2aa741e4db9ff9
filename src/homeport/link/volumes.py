"""What server and node say to each other about volumes, as bodies of HTTP requests.

* ``GET /_node/volumes/<id>/changes?since=<revision>`` answers a ``ChangesHead`` and then batches
  of ``VolumeEntry``, each a msgpack value behind its length (4 bytes, big endian).
* ``POST /_node/volumes/<id>/commit`` takes a ``VolumeCommit`` and answers a ``CommitDone``.
* ``POST /_node/blocks/missing`` takes a list of hashes (32 bytes each) and answers those of them
  that the server does not have; ``PUT /_node/blocks/<sha256>`` stores one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from homeport.kernel.errors import InvalidError

BLOCK_BYTES: Final = 8 * 1024 * 1024
"""Files are cut into blocks of this size (the client's ``BLOCK_SIZE``); the last may be shorter."""
HASH_BYTES: Final = 32
BATCH_ENTRIES: Final = 5_000
"""Entries of a batch: about half a megabyte."""

GONE: Final = 0
FILE: Final = 1
DIRECTORY: Final = 2
SYMLINK: Final = 3
"""Values of ``VolumeEntry.kind``; ``GONE`` says that nothing is at the path any more."""

_LENGTH: Final = struct.Struct(">I")


class VolumeEntry(msgspec.Struct, frozen=True, array_like=True):
    """One path of a volume.

    ``path`` is relative to the volume's root and has no slash at its ends. ``mode`` are permission
    bits, ``mtime`` Unix seconds, ``size`` bytes. ``hashes`` are the SHA-256 of a file's blocks, one
    behind the other. A block's content may lack zero bytes at its end. A file of more than one
    block with one hash is stored as one content. ``target`` is where a symbolic link leads.
    """

    path: str
    kind: int
    size: int = 0
    mode: int = 0o644
    mtime: float = 0.0
    hashes: bytes = b""
    target: str = ""
    revision: int = 0

    def pieces(self) -> list[tuple[bytes, int, int]]:
        """The contents that make the file: (hash, offset in the file, length) each."""
        count = len(self.hashes) // HASH_BYTES
        if count == 1:
            return [(self.hashes, 0, self.size)]
        return [
            (
                self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES],
                index * BLOCK_BYTES,
                min(BLOCK_BYTES, self.size - index * BLOCK_BYTES),
            )
            for index in range(count)
        ]


class ChangesHead(msgspec.Struct, frozen=True, array_like=True):
    """The revision that the entries behind it lead to, from nothing if ``complete``."""

    revision: int
    complete: bool


class VolumeCommit(msgspec.Struct, frozen=True, array_like=True):
    """What a container changed since it got revision ``base``.

    ``trees`` were removed with all that was in them at ``base``; ``removed`` are single paths.
    Then ``entries`` take their places. ``commit_id`` is the same when the request is repeated.
    """

    commit_id: str
    base: int
    trees: list[str]
    removed: list[str]
    entries: list[VolumeEntry]


class CommitDone(msgspec.Struct, frozen=True, array_like=True):
    """The revision in which a commit's changes are visible."""

    revision: int


def block_count(size: int) -> int:
    """How many blocks a file of ``size`` bytes has."""
    return -(-size // BLOCK_BYTES)


def framed(value: object) -> bytes:
    """``value`` as msgpack behind its length."""
    data = msgspec.msgpack.encode(value)
    return _LENGTH.pack(len(data)) + data


class Unframer:
    """Takes bytes as they come, gives the framed values that are complete."""

    def __init__(self, size_max: int = 64 * 1024 * 1024) -> None:
        self._size_max = size_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The values that end in ``data``. Raises ``InvalidError`` for one that is too long."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > self._size_max:
                raise InvalidError(f"a value of {length} bytes is longer than {self._size_max}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            yield bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left over."""
        return not self._buffer
