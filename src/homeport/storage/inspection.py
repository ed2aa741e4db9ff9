"""Looking at stored contents from beside the server, for checks; nothing is changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

from homeport.settings import Settings
from homeport.storage.bucket import Bucket


class Inspection(Protocol):
    """The contents as they lie in their store, whatever the server has recorded of them."""

    def size(self, sha256: str) -> int | None:
        """Size in bytes; ``None`` if it is not there."""
        ...

    def digest(self, sha256: str) -> str:
        """The SHA-256 of the bytes that are there under that name, in hex."""
        ...


class FolderInspection:
    """Of a ``FileStore`` in ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, sha256: str) -> int | None:
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def digest(self, sha256: str) -> str:
        with self._path(sha256).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256


class BucketInspection:
    """Of a ``BucketStore``: one listing of the bucket, and a question for what came later."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._sizes = bucket.sizes()

    def size(self, sha256: str) -> int | None:
        name = f"{sha256[:2]}/{sha256}"
        size = self._sizes.get(name)
        return self._bucket.size(name) if size is None else size

    def digest(self, sha256: str) -> str:
        digest = hashlib.sha256()
        for piece in self._bucket.pieces(f"{sha256[:2]}/{sha256}", self.size(sha256) or 0):
            digest.update(piece)
        return digest.hexdigest()


def inspect(settings: Settings) -> Inspection:
    """The contents of an installation. Raises ``InvalidError``, ``UnavailableError``."""
    if settings.blob_store:
        return BucketInspection(Bucket(settings.blob_store, settings.blob_store_options))
    return FolderInspection(settings.blob_root)
