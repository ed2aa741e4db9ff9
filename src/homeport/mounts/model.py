"""Mounts and the rules of their manifests."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable
from typing import Final

import msgspec

from homeport.kernel import ids
from homeport.kernel.errors import InvalidError
from homeport.link.messages import ManifestFile

FILES_MAX: Final = 200_000
"""Files in one mount: bounds the manifest that every node keeps in memory while mounting."""

_MODE_BITS: Final = 0o7777
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[ManifestFile])


class RequestedFile(msgspec.Struct, frozen=True):
    """A file as a client lists it; its content was uploaded before."""

    name: str
    sha256: str
    mode: int = 0o644


class Mount(msgspec.Struct, frozen=True):
    """A set of files by content: ``digest`` is the SHA-256 of its manifest."""

    id: str
    digest: str


def build_manifest(files: Iterable[RequestedFile], sizes: dict[str, int]) -> list[ManifestFile]:
    """The manifest of ``files``, sorted by name; of files of one name the last counts.

    Raises ``InvalidError`` naming the file for bad names and for contents not in ``sizes``.
    """
    manifest: dict[str, ManifestFile] = {}
    for file in files:
        name = _checked_name(file.name)
        size = sizes.get(file.sha256)
        if size is None:
            raise InvalidError(
                f"the content of {name} (SHA-256 {file.sha256}) is not on the server; upload it first"
            )
        manifest[name] = ManifestFile(name, file.sha256, file.mode & _MODE_BITS, size)
    if len(manifest) > FILES_MAX:
        raise InvalidError(f"a mount can have {FILES_MAX} files, not {len(manifest)}")
    return [manifest[name] for name in sorted(manifest)]


def encode(manifest: list[ManifestFile]) -> bytes:
    """The stored form of a sorted manifest."""
    return _encoder.encode(manifest)


def decode(data: bytes) -> list[ManifestFile]:
    return _decoder.decode(data)


def digest_of(data: bytes) -> str:
    """The digest of an encoded manifest."""
    return hashlib.sha256(data).hexdigest()


def mount_of(digest: str) -> Mount:
    """The mount with these contents: the same contents have the same id."""
    return Mount(ids.derive(ids.MOUNT, digest), digest)


def _checked_name(name: str) -> str:
    clean = posixpath.normpath(name)
    if not name.startswith("/") or "\0" in name or ".." in name.split("/") or clean == "/":
        raise InvalidError(f"{name[:200]!r} is not an absolute file name")
    return "/" + clean.lstrip("/")
