"""Use cases of volumes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Final, Literal, TypeVar

import msgspec
import structlog

from homeport.blobs.service import BlobService
from homeport.kernel import ids
from homeport.kernel.clock import Clock, SystemClock
from homeport.kernel.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
)
from homeport.link.volumes import (
    BATCH_ENTRIES,
    DIRECTORY,
    FILE,
    ChangesHead,
    Unframer,
    VolumeCommit,
    VolumeEntry,
    framed,
)
from homeport.objects.service import Objects
from homeport.storage.contents import ContentStore
from homeport.storage.spool import Spool
from homeport.volumes import changing, copying
from homeport.volumes.blocks import Blocks
from homeport.volumes.links import follow
from homeport.volumes.model import (
    TOMBSTONE_S,
    Head,
    NewFile,
    check_blocks,
    file_path,
    normalised,
)
from homeport.volumes.store import CHANGES_S, VolumeStore
from homeport.volumes.tree import Tree

log = structlog.get_logger(__name__)

IfExists = Literal["keep", "fail"]
T = TypeVar("T")

_CLOCK_SLACK_S: Final = 60.0
"""A client whose clock is behind the server's still sees the newest volumes."""
_INLINE_BYTES: Final = 4 * 1024 * 1024
_entries: Final = msgspec.msgpack.Decoder(list[VolumeEntry])


class VolumeService:
    """The volumes of the installation and their files.

    Changes take the id of the request that makes them: repeated, it is not carried out again.
    """

    def __init__(
        self,
        objects: Objects,
        store: VolumeStore,
        blocks: Blocks,
        files: ContentStore,
        blobs: BlobService,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._objects = objects
        self._store = store
        self.blocks = blocks
        self._files = files
        self._blobs = blobs
        self._clock = clock or SystemClock()

    async def prepare_mount(self, volume_id: str, sub_path: str) -> None:
        """See to it that this directory of the volume can be mounted. Raises ``NotFoundError``."""
        self._objects.get(volume_id)
        if sub_path:
            await self.make_directory(volume_id, sub_path)

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    async def entry(self, volume_id: str, path: str) -> VolumeEntry:
        """The file at ``path``, symbolic links followed.

        Raises ``NotFoundError``; ``InvalidError`` for a directory.
        """
        wanted = normalised(path)
        entry = await self._read_tree(volume_id, lambda tree: follow(tree, wanted))
        if entry is None:
            raise NotFoundError(f"there is no file {path!r} in the volume")
        if entry.kind != FILE:
            raise InvalidError(f"{path!r} is a directory, not a file")
        return entry

    async def list_files(
        self, volume_id: str, path: str, *, recursive: bool, limit: int = 0
    ) -> AsyncIterator[list[VolumeEntry]]:
        """A file itself, or what is in a directory (all below it if ``recursive``), in batches.

        ``limit`` 0 means all. Raises ``NotFoundError``.
        """
        wanted = normalised(path)

        def read(tree: Tree) -> Spool | None:
            found = tree.get(wanted)
            if found is None:
                return None
            entries: Iterable[VolumeEntry] = [found]
            if found.kind == DIRECTORY:
                entries = tree.descendants(wanted) if recursive else tree.children(wanted)
            bare = (msgspec.structs.replace(entry, hashes=b"") for entry in entries)
            return Spool(map(framed, _batches(islice(bare, limit or None))))

        spool = await self._read_tree(volume_id, read)
        if spool is None:
            raise NotFoundError(f"there is no file or directory {path!r} in the volume")
        unframer = Unframer()
        with contextlib.closing(spool):
            async for chunk in spool.chunks():
                for frame in unframer.feed(chunk):
                    yield _entries.decode(frame)

    async def read(self, entry: VolumeEntry, start: int, length: int) -> bytes | str:
        """A part of a file: the bytes, or the id of a blob if they are too many for a message."""
        pieces = self.blocks.read(entry, start, length)
        if length <= _INLINE_BYTES:
            return b"".join([piece async for piece in pieces])
        sha256, _, size = await self._files.put_stream(pieces, md5=False)
        return await self._blobs.adopt(sha256, size)

    # ── changing ────────────────────────────────────────────────────────────────────────────

    async def upload_blocks(
        self, volume_id: str, files: Sequence[NewFile], *, overwrite: bool, change_id: str
    ) -> set[str]:
        """Set files made of blocks, all of them or none.

        If contents are missing nothing is set and the answer is their hashes (hex). Raises
        ``NotFoundError``, ``InvalidError``, ``AlreadyExistsError``.
        """
        for file in files:
            check_blocks(file)
        self._objects.get(volume_id)
        absent = await self.blocks.missing_of(files)
        if not absent:
            await self._upload(volume_id, files, overwrite, change_id)
        return absent

    async def upload_contents(
        self,
        volume_id: str,
        files: Sequence[tuple[str, str, int]],
        *,
        overwrite: bool,
        change_id: str,
    ) -> None:
        """Set files given as (path, SHA-256 of the content in hex, mode), all or none.

        Raises ``InvalidError`` naming a content that was not uploaded, and as ``upload_blocks``.
        """
        sizes = await self._files.sizes({sha256 for _, sha256, _ in files})
        new: list[NewFile] = []
        for path, sha256, mode in files:
            size = sizes.get(sha256)
            if size is None:
                raise InvalidError(
                    f"{path}: its content {sha256} was not uploaded; upload it again"
                )
            hashes = bytes.fromhex(sha256) if size else b""
            new.append(NewFile(file_path(path), size, mode, hashes))
        await self._upload(volume_id, new, overwrite, change_id)

    async def _upload(
        self, volume_id: str, files: Sequence[NewFile], overwrite: bool, change_id: str
    ) -> None:
        now = self._clock.now()

        def change(tree: Tree) -> None:
            changing.upload(tree, files, overwrite=overwrite, now=now)

        await self._store.change(volume_id, change_id, now, change)

    async def remove(self, volume_id: str, path: str, *, recursive: bool, change_id: str) -> None:
        """Raises ``NotFoundError``; ``InvalidError`` for a directory without ``recursive``."""
        wanted = normalised(path)
        if not wanted:
            raise InvalidError(
                "the root of a volume is not removed: remove what is in it, or delete the volume"
            )
        now = self._clock.now()

        def change(tree: Tree) -> None:
            changing.remove(tree, wanted, recursive=recursive, now=now)

        await self._store.change(volume_id, change_id, now, change)

    async def copy(
        self,
        volume_id: str,
        sources: Sequence[str],
        target: str,
        *,
        recursive: bool,
        change_id: str,
    ) -> None:
        """Copy inside the volume as ``cp`` does. Raises ``InvalidError`` or ``NotFoundError``."""
        now = self._clock.now()

        def change(tree: Tree) -> None:
            copying.copy(tree, sources, target, recursive=recursive, now=now)

        await self._store.change(volume_id, change_id, now, change)

    async def make_directory(self, volume_id: str, path: str) -> None:
        """Make a directory if it is missing. Raises ``NotFoundError``, ``AlreadyExistsError``."""
        wanted = normalised(path)
        found = await self._read_tree(volume_id, lambda tree: tree.get(wanted))
        if found is not None and found.kind == DIRECTORY:
            return
        now = self._clock.now()

        def change(tree: Tree) -> None:
            changing.make_directory(tree, wanted, now)

        await self._store.change(volume_id, ids.new(ids.VOLUME_CHANGE), now, change)

    # ── for nodes ───────────────────────────────────────────────────────────────────────────

    async def changes(self, volume_id: str, since: int) -> Spool:
        """What leads from revision ``since`` to the newest one, framed for a node; close it.

        Raises ``NotFoundError``.
        """

        def read(head: Head, tree: Tree) -> Spool:
            complete = since <= 0 or since < head.floor or since > head.revision
            entries = tree.descendants("") if complete else tree.delta(since)
            frames = map(framed, _batches(entries))
            return Spool(chain([framed(ChangesHead(head.revision, complete))], frames))

        return await self._store.read(volume_id, read)

    async def commit(self, volume_id: str, commit: VolumeCommit) -> int:
        """Take over a container's changes as one revision; that revision.

        Raises ``NotFoundError``; ``ConflictError`` if the contents are not all here.
        """
        for entry in commit.entries:
            if file_path(entry.path) != entry.path:
                raise InvalidError(f"{entry.path!r} is not a normalised path")
            if entry.kind == FILE:
                check_blocks(NewFile(entry.path, entry.size, entry.mode, entry.hashes))
        files = [entry for entry in commit.entries if entry.kind == FILE]
        absent = await self.blocks.missing_of(files)
        if absent:
            raise ConflictError(f"{len(absent)} contents of this commit have not arrived")
        now = self._clock.now()

        def change(tree: Tree) -> None:
            changing.commit(tree, commit, now)

        return await self._store.change(volume_id, commit.commit_id, now, change)

    # ── housekeeping ────────────────────────────────────────────────────────────────────────

    async def prune(self) -> int:
        """Forget old removals and old requests."""
        now = self._clock.now()
        count = await self._store.forget_removals(now - TOMBSTONE_S)
        return count + await self._store.forget_changes(now - CHANGES_S)

    async def contents(self) -> set[str]:
        """Hashes of the contents that files are made of (for the file store's ``sweep``)."""
        return await self._store.contents()

    async def _read_tree(self, volume_id: str, query: Callable[[Tree], T]) -> T:
        self._objects.get(volume_id)
        return await self._store.read(volume_id, lambda _, tree: query(tree))


def _batches(entries: Iterable[VolumeEntry]) -> Iterable[list[VolumeEntry]]:
    batch: list[VolumeEntry] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) >= BATCH_ENTRIES:
            yield batch
            batch = []
    if batch:
        yield batch
