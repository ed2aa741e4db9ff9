"""Use cases of network file systems.

Each is a directory of this machine. Containers have it mounted as it is, so what one writes all
others see at once; there is nothing to commit. Clients read and write it through the server.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from homeport.blobs.service import BlobService
from homeport.nfs.model import Entry, file_path
from homeport.nfs.tree import SharedTree
from homeport.objects.model import StoredObject
from homeport.objects.service import Objects
from homeport.storage.contents import ContentStore
from homeport.storage.database import Database
from homeport.storage.operations import OperationLog

log = structlog.get_logger(__name__)

INLINE_BYTES: Final = 4 * 1024 * 1024
"""Larger files are read through a blob, as clients write them."""


class NetworkFileSystems:
    """The installation's, as directories ``root/<id>``. ``start`` before use."""

    def __init__(
        self,
        objects: Objects,
        root: Path,
        files: ContentStore,
        blobs: BlobService,
        database: Database,
        operations: OperationLog,
        *,
        fsync: bool = False,
    ) -> None:
        self._objects = objects
        self._root = root
        self._incoming = root / "incoming"
        self._files = files
        self._blobs = blobs
        self._database = database
        self._operations = operations
        self._fsync = fsync
        objects.on_gone(self._gone)

    async def start(self) -> None:
        """Remove what a crash left: directories of deleted ones, files half received."""
        kept = {item.id for item in self._objects.all()}
        await asyncio.to_thread(self._tidy, kept)

    def _tidy(self, kept: set[str]) -> None:
        shutil.rmtree(self._incoming, ignore_errors=True)
        for folder in self._root.iterdir() if self._root.exists() else ():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    async def _gone(self, items: Sequence[StoredObject]) -> None:
        for item in items:
            await asyncio.to_thread(shutil.rmtree, self._root / item.id, True)

    async def directory(self, object_id: str) -> Path:
        """The directory that containers have mounted. Raises ``NotFoundError``."""
        self._objects.get(object_id)
        path = self._root / object_id
        await asyncio.to_thread(self._make, path)
        return path

    def _make(self, path: Path) -> None:
        if not path.is_dir():
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.chmod(0o755)
        self._incoming.mkdir(mode=0o700, exist_ok=True)

    async def _tree(self, object_id: str) -> SharedTree:
        root = await self.directory(object_id)
        return SharedTree(root, self._incoming, fsync=self._fsync)

    # ── files ───────────────────────────────────────────────────────────────────────────────

    async def write(self, object_id: str, path: str, data: bytes | str) -> None:
        """Write a file, at once: ``data``, or what the blob of that id holds.

        Raises ``NotFoundError``, ``InvalidError``, ``ExhaustedError``.
        """
        wanted = file_path(path)
        tree = await self._tree(object_id)
        source: BinaryIO
        if isinstance(data, str):
            source = await self._files.open((await self._blobs.get(data)).sha256)
        else:
            source = io.BytesIO(data)
        with source:
            await asyncio.to_thread(tree.write, wanted, source)

    async def read(self, object_id: str, path: str) -> bytes | str:
        """A file's content, or a new blob's id for a large one. Raises ``NotFoundError``."""
        tree = await self._tree(object_id)
        file = await asyncio.to_thread(tree.open, path)
        with file:
            if os.fstat(file.fileno()).st_size <= INLINE_BYTES:
                # one more byte than fits: it may be growing under our hands
                data = await asyncio.to_thread(file.read, INLINE_BYTES + 1)
                if len(data) <= INLINE_BYTES:
                    return data
            sha256 = await self._files.put_file(Path(f"/proc/self/fd/{file.fileno()}"))
            sizes = await self._files.sizes([sha256])
            return await self._blobs.adopt(sha256, sizes[sha256])

    async def list(self, object_id: str, path: str) -> list[Entry]:
        """What ``path`` names (``SharedTree.list``). Raises ``NotFoundError``."""
        tree = await self._tree(object_id)
        return await asyncio.to_thread(tree.list, path)

    async def remove(
        self, object_id: str, path: str, *, recursive: bool, operation: str = ""
    ) -> None:
        """Remove what is at ``path``. ``operation`` names the call for its repeats.

        Raises ``NotFoundError``, ``InvalidError``.
        """
        tree = await self._tree(object_id)
        # Files are not in the database: that the call came is recorded first, and its repeat
        # removes what is still there.
        was_begun = await self._operations.was_done(operation)
        if not was_begun:
            await self._database.append_all([self._operations.record(operation)])
        await asyncio.to_thread(tree.remove, path, recursive=recursive, missing_ok=was_begun)
