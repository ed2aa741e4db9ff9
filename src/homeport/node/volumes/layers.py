"""Committed files of volumes on a node's disk: per volume a stack of layers, one a visit.

A layer holds what changed from one revision to a later one, as directories of an overlay do:
files, directories, and character devices 0/0 for what was removed. The first one is complete. So
what is on the disk is never changed under a container that has it mounted, and a newer revision
costs what changed since. Files that stay the same from one complete layer to the next are links.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from homeport.kernel.decoding import UNREADABLE
from homeport.kernel.errors import UnavailableError
from homeport.kernel.ids import new
from homeport.link.volumes import (
    DIRECTORY,
    FILE,
    SYMLINK,
    ChangesHead,
    VolumeEntry,
)
from homeport.node.layers import remove_tree
from homeport.node.volumes.stacked import has_path

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LAYERS_MAX: Final = 48
"""With more the stack is made anew: every look-up asks every layer."""
_FETCHES: Final = 16
_FREE_SHARE: Final = 0.1
"""With less of the disk free, volumes that no container uses are dropped from it."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_EMPTY: Final = hashlib.sha256().digest()


class Changes(Protocol):
    """``VolumeSource`` as this module uses it."""

    def changes(
        self, volume_id: str, since: int
    ) -> AsyncGenerator[ChangesHead | list[VolumeEntry], None]: ...


class Contents(Protocol):
    """``FileSource`` as this module uses it."""

    def local(self, sha256: str) -> Path | None: ...

    async def download(self, sha256: str, target: Path) -> None: ...


class _Record(msgspec.Struct):
    """``stack.json``: which layers make the newest revision, lowest first."""

    revision: int
    layers: list[str]
    boot_id: str


@dataclass(slots=True)
class _Stack:
    """One volume on this disk."""

    root: Path
    revision: int = 0
    layers: list[str] = field(default_factory=list[str])
    users: dict[str, int] = field(default_factory=dict[str, int])
    """How many containers use each layer."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    used: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A volume at one revision: its layers, lowest first; give it back with ``release``."""

    volume_id: str
    revision: int
    names: tuple[str, ...]
    layers: tuple[Path, ...]


class VolumeLayers:
    """The volumes of one node, in ``root``; one process a store.

    Everything can be had from the server again. What was written before the machine's last start
    is dropped: without power it may not have come whole to the disk.
    """

    def __init__(self, root: Path, source: Changes, contents: Contents) -> None:
        self._root = root.absolute()
        self._source = source
        self._contents = contents
        self._stacks: dict[str, _Stack] = {}
        self._turn = 0
        self._boot_id = _BOOT_ID.read_text().strip()
        self._work = self._root / ".work"
        self._blocks = self._root / ".blocks"
        for left in (self._work, self._blocks):
            remove_tree(left)
            left.mkdir(parents=True)

    async def acquire(self, volume_id: str) -> Snapshot:
        """The newest revision of a volume, on this disk. Raises ``NotFoundError``,
        ``UnavailableError`` or ``OSError``."""
        stack = self._stack(volume_id)
        async with stack.lock:
            await self._update(volume_id, stack)
            snapshot = Snapshot(
                volume_id,
                stack.revision,
                tuple(stack.layers),
                tuple(stack.root / name for name in stack.layers),
            )
            self._turn += 1
            stack.used = self._turn
            for name in snapshot.names:
                stack.users[name] = stack.users.get(name, 0) + 1
        return snapshot

    async def release(self, snapshot: Snapshot) -> None:
        """A container does not use the snapshot any more."""
        stack = self._stack(snapshot.volume_id)
        for name in snapshot.names:
            stack.users[name] -= 1
            if not stack.users[name]:
                del stack.users[name]
        async with stack.lock:
            await self._drop_unused(stack)
        await self._make_room()

    def _stack(self, volume_id: str) -> _Stack:
        stack = self._stacks.get(volume_id)
        if stack is None:
            stack = self._stacks[volume_id] = self._load(self._root / volume_id)
        return stack

    def _load(self, root: Path) -> _Stack:
        stack = _Stack(root)
        try:
            record = msgspec.json.decode((root / "stack.json").read_bytes(), type=_Record)
        except (FileNotFoundError, *UNREADABLE):
            record = _Record(0, [], "")
        names = {name for name in record.layers if (root / name).is_dir()}
        if record.boot_id != self._boot_id or len(names) < len(record.layers):
            remove_tree(root)
        else:
            stack.revision, stack.layers = record.revision, record.layers
        (root / "files").mkdir(parents=True, exist_ok=True)
        return stack

    # ── towards the newest revision ─────────────────────────────────────────────────────────

    async def _update(self, volume_id: str, stack: _Stack) -> None:
        since = stack.revision if 0 < len(stack.layers) < LAYERS_MAX else 0
        work = self._work / new("vl")
        builder = _Builder(work, stack.root / "files", self._blocks, self._contents)
        head: ChangesHead | None = None
        try:
            async with contextlib.aclosing(self._source.changes(volume_id, since)) as changes:
                async for item in changes:
                    if isinstance(item, ChangesHead):
                        head = item
                        names = [] if item.complete else stack.layers[::-1]
                        builder.begin([stack.root / name for name in names])
                    else:
                        await builder.add(item)
            if head is None:
                raise UnavailableError("the server said nothing about the volume")
            if stack.layers and not head.complete and head.revision == stack.revision:
                return
            await asyncio.to_thread(builder.end)
            name = f"{0 if head.complete else stack.revision}-{head.revision}-{work.name}"
            work.rename(stack.root / name)
            below = [] if head.complete else stack.layers
            stack.layers = [*below, name]
            stack.revision = head.revision
            self._save(stack)
        finally:
            if work.exists():
                await asyncio.to_thread(remove_tree, work)
        if head.complete:
            await self._drop_unused(stack)

    def _save(self, stack: _Stack) -> None:
        record = _Record(stack.revision, stack.layers, self._boot_id)
        temporary = stack.root / "stack.json.tmp"
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.replace(stack.root / "stack.json")

    # ── room ────────────────────────────────────────────────────────────────────────────────

    async def _drop_unused(self, stack: _Stack) -> None:
        """Delete layers that are neither of the newest revision nor used by a container."""
        kept = {*stack.layers, *stack.users}
        dropped = [
            path
            for path in stack.root.iterdir()
            if path.is_dir() and path.name != "files" and path.name not in kept
        ]
        if dropped:
            await asyncio.to_thread(_drop, dropped, stack.root / "files")

    async def _make_room(self) -> None:
        """Drop volumes without containers, the longest unused first, while the disk is full."""
        idle = sorted(
            (stack for stack in self._stacks.values() if not stack.users and stack.layers),
            key=lambda stack: stack.used,
        )
        for stack in idle:
            usage = shutil.disk_usage(self._root)
            if usage.free >= usage.total * _FREE_SHARE or stack.lock.locked():
                return
            async with stack.lock:
                if stack.users:
                    continue
                log.info("a volume is dropped from the full disk", path=str(stack.root))
                stack.layers, stack.revision = [], 0
                (stack.root / "stack.json").unlink(missing_ok=True)
                await self._drop_unused(stack)


def _drop(layers: Iterable[Path], files: Path) -> None:
    for layer in layers:
        remove_tree(layer)
    for folder in files.iterdir():
        for entry in os.scandir(folder):
            if entry.stat(follow_symlinks=False).st_nlink == 1:
                os.unlink(entry.path)


class _Builder:
    """Makes one layer in ``work`` from entries in the order of their paths."""

    def __init__(self, work: Path, files: Path, blocks: Path, contents: Contents) -> None:
        self._work = work
        self._files = files
        self._blocks = blocks
        self._contents = contents
        self._below: list[Path] = []
        self._directories: dict[str, VolumeEntry] = {}

    def begin(self, below: list[Path]) -> None:
        """``below`` are the layers that this one comes on, topmost first."""
        self._below = below
        self._work.mkdir()
        self._work.chmod(0o755)

    async def add(self, batch: list[VolumeEntry]) -> None:
        """Put these entries into the layer."""
        absent = await asyncio.to_thread(self._absent, batch)
        await self._fetch(absent)
        try:
            await asyncio.to_thread(self._place, batch)
        finally:
            for sha256 in absent:
                self._block(sha256).unlink(missing_ok=True)

    def end(self) -> None:
        """Give directories their times: making what is in them changed them."""
        for path, entry in self._directories.items():
            os.utime(self._work / path, (entry.mtime, entry.mtime))

    async def _fetch(self, hashes: Iterable[bytes]) -> None:
        limit = asyncio.Semaphore(_FETCHES)

        async def one(sha256: bytes) -> None:
            async with limit:
                await self._contents.download(sha256.hex(), self._block(sha256))

        await asyncio.gather(*(one(sha256) for sha256 in hashes))

    def _absent(self, batch: list[VolumeEntry]) -> set[bytes]:
        """Contents that are needed and not on this disk."""
        needed: set[bytes] = set()
        for entry in batch:
            if entry.kind == FILE and not self._cached(entry).exists():
                needed.update(sha256 for sha256, _, _ in entry.pieces())
        needed.discard(_EMPTY)
        return {sha256 for sha256 in needed if self._contents.local(sha256.hex()) is None}

    def _block(self, sha256: bytes) -> Path:
        return self._blocks / f"{self._work.name}-{sha256.hex()}"

    def _place(self, batch: list[VolumeEntry]) -> None:
        for entry in batch:
            parent = entry.path.rpartition("/")[0]
            if parent and parent not in self._directories:
                continue  # what was below something that is no directory any more
            target = self._work / entry.path
            if entry.kind == DIRECTORY:
                target.mkdir()
                target.chmod(entry.mode & 0o7777)
                self._directories[entry.path] = entry
            elif entry.kind == SYMLINK:
                target.symlink_to(entry.target)
                os.utime(target, (entry.mtime, entry.mtime), follow_symlinks=False)
            elif entry.kind == FILE:
                self._place_file(entry, target)
            elif has_path(self._below, entry.path):
                # (in a directory that is in no other layer it would show as a device)
                os.mknod(target, stat.S_IFCHR, 0)

    def _place_file(self, entry: VolumeEntry, target: Path) -> None:
        cached = self._cached(entry)
        if not cached.exists():
            cached.parent.mkdir(exist_ok=True)
            temporary = cached.with_name(f".{cached.name}.{new('tm')}")
            self._assemble(entry, temporary)
            temporary.replace(cached)
        os.link(cached, target)

    def _cached(self, entry: VolumeEntry) -> Path:
        """The file with this content, mode and time at this path: an inode is of one path only."""
        identity = msgspec.msgpack.encode(
            (entry.path, entry.size, entry.mode, entry.mtime, entry.hashes)
        )
        key = hashlib.sha256(identity).hexdigest()
        return self._files / key[:2] / key

    def _assemble(self, entry: VolumeEntry, target: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        out = os.open(target, flags, 0o600)
        try:
            for sha256, offset, length in entry.pieces():
                if sha256 != _EMPTY:
                    self._copy(sha256, out, offset, length)
            os.ftruncate(out, entry.size)
            os.fchmod(out, entry.mode & 0o7777)
            os.utime(out, (entry.mtime, entry.mtime))
        finally:
            os.close(out)

    def _copy(self, sha256: bytes, out: int, offset: int, length: int) -> None:
        path = self._block(sha256)
        if not path.exists():
            path = self._contents.local(sha256.hex()) or path
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UnavailableError(
                f"the content {sha256.hex()} went away while it was copied; try again"
            ) from None
        try:
            left = min(length, os.fstat(source).st_size)
            position = 0
            while left > 0:
                copied = _copy_range(source, out, left, position, offset + position)
                if copied == 0:
                    return
                position += copied
                left -= copied
        finally:
            os.close(source)


def _copy_range(source: int, out: int, count: int, position: int, offset: int) -> int:
    try:
        return os.copy_file_range(source, out, count, position, offset)
    except OSError:  # across file systems, or one that does not offer it
        data = os.pread(source, min(count, 1024 * 1024), position)
        return os.pwrite(out, data, offset)
