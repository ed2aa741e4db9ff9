"""Image layers on a node's disk: directories addressed by what made them, stacked by overlays.

``<root>/<key>/`` is a layer's tree, read-only by convention: containers mount it as an overlay's
lower directory and other stores may share its inodes by hard links. ``<root>/<key>.json`` beside it
says where it came from and exists only once the tree is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import structlog

from homeport.kernel import ids
from homeport.kernel.decoding import UNREADABLE

log = structlog.get_logger(__name__)

SNAPSHOT = "snapshot of a sandbox"
"""``LayerMetadata.instruction`` of a layer that nothing can make again: it is never surplus."""
_KEY_CHARACTERS = 32
"""128 bits of SHA-256: short enough for many layers in one ``mount`` call's page of options."""


class LayerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Where a layer came from. ``size_bytes`` counts file contents, ``created_at`` Unix seconds."""

    parent: str
    instruction: str
    created_at: float
    size_bytes: int = 0
    notes: dict[str, str] = {}


def layer_key(*parts: str | bytes) -> str:
    """The key of a layer made from ``parts`` (parent key, instruction, content, …), always the same."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:_KEY_CHARACTERS]


class LayerStore:
    """The layers of one node.

    Work in progress lives in ``<root>/.work.<pid>``; what a process that is gone left there is
    deleted when the store is opened. ``commit`` is atomic, so a layer is there whole or not at
    all, and several processes may share a store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._pins: Counter[str] = Counter()
        self.on_growth: Callable[[], None] = lambda: None
        """Called when layers came: where the store is bounded, it is time to look."""
        self._work = self.root / f".work.{os.getpid()}"
        self._work.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(".work.*"):
            if left != self._work and not Path("/proc", left.suffix[1:]).exists():
                remove_tree(left)

    def path(self, key: str) -> Path:
        """The directory of layer ``key`` (whether or not it exists)."""
        return self.root / key

    def has(self, key: str) -> bool:
        """Whether layer ``key`` is there, whole."""
        return self._record(key).exists() and self.path(key).is_dir()

    def metadata(self, key: str) -> LayerMetadata | None:
        """What is known of layer ``key``; ``None`` if it is not there."""
        try:
            return msgspec.json.decode(self._record(key).read_bytes(), type=LayerMetadata)
        except (FileNotFoundError, *UNREADABLE):
            return None

    def keys(self) -> list[str]:
        """Every layer there is."""
        return sorted(file.stem for file in self.root.glob("*.json") if self.has(file.stem))

    # ── what is in use, and what may go ─────────────────────────────────────────────────────

    def pin(self, keys: Iterable[str]) -> None:
        """Say that these layers are in use until ``unpin``; they also count as used now."""
        for key in keys:
            self._pins[key] += 1
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._record(key))

    def unpin(self, keys: Iterable[str]) -> None:
        """Take one ``pin`` back."""
        self._pins.subtract(keys)
        self._pins = +self._pins
        self.on_growth()

    def size_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(size for _, _, size in self._by_age())

    def surplus(self, bytes_max: int) -> list[str]:
        """The layers that have to go for the rest to fit: least recently used, none in use."""
        layers = self._by_age()
        over = sum(size for _, _, size in layers) - bytes_max
        chosen: list[str] = []
        for _, key, size in layers:
            if over <= 0:
                break
            if not self._pins[key]:
                chosen.append(key)
                over -= size
        return chosen

    async def drop(self, keys: Iterable[str]) -> list[str]:
        """Delete those of these layers that are there and not in use; returns them."""
        chosen = [key for key in keys if not self._pins[key] and self._record(key).exists()]
        for key in chosen:  # at once, so that nobody begins to use what goes
            self._record(key).unlink(missing_ok=True)
        for key in chosen:
            await self.forget(key)
        return chosen

    def _by_age(self) -> list[tuple[float, str, int]]:
        """(last use, key, bytes) of every layer that can be made again, the oldest first."""
        found: list[tuple[float, str, int]] = []
        for record in self.root.glob("*.json"):
            metadata = self.metadata(record.stem)
            if metadata is not None and metadata.instruction != SNAPSHOT:
                found.append((record.stat().st_mtime, record.stem, metadata.size_bytes))
        return sorted(found)

    def new_work(self) -> Path:
        """A fresh private directory on the store's file system, for an overlay's upper and work."""
        path = self._work / ids.new("bd")
        path.mkdir()
        return path

    async def discard(self, path: Path) -> None:
        """Delete a directory made by ``new_work`` or what is left of it."""
        await asyncio.to_thread(remove_tree, path)

    async def commit(self, upper: Path, key: str, metadata: LayerMetadata) -> Path:
        """Make the tree ``upper`` (same file system) layer ``key``; returns its directory.

        If the layer is there already, it stays as it is and ``upper`` is deleted.
        """
        return await asyncio.to_thread(self.commit_now, upper, key, metadata)

    def commit_now(self, upper: Path, key: str, metadata: LayerMetadata) -> Path:
        """``commit`` for threads: it blocks."""
        target = self.path(key)
        if self.has(key):
            remove_tree(upper)
            return target
        if target.exists():  # a crash came between the rename and the record
            remove_tree(target)
        upper.chmod(0o755)  # the topmost layer's root directory is the container's "/"
        os.rename(upper, target)
        self._write_record(key, msgspec.structs.replace(metadata, size_bytes=tree_size(target)))
        return target

    async def adopt(self, source: LayerStore, key: str) -> None:
        """Take layer ``key`` of another store over, sharing its inodes where the disk allows it."""
        if not self.has(key):
            await asyncio.to_thread(self._adopt, source, key)

    def _adopt(self, source: LayerStore, key: str) -> None:
        metadata = source.metadata(key)
        if metadata is None:
            raise FileNotFoundError(f"layer {key} is not in {source.root}")
        work = self.new_work()
        try:
            copy = work / "tree"
            share = "--link" if _same_device(source.path(key), work) else "--reflink=auto"
            subprocess.run(
                ["cp", "-a", share, "--", str(source.path(key)), str(copy)],
                check=True,
                capture_output=True,
            )
            target = self.path(key)
            if target.exists():
                remove_tree(target)
            os.rename(copy, target)
            self._write_record(key, metadata)
        finally:
            remove_tree(work)

    async def forget(self, key: str) -> None:
        """Delete layer ``key``. Nothing may be running on it."""
        self._record(key).unlink(missing_ok=True)
        if self.path(key).exists():
            work = self.new_work()
            os.rename(self.path(key), work / "tree")
            await self.discard(work)

    def _record(self, key: str) -> Path:
        return self.root / f"{key}.json"

    def _write_record(self, key: str, metadata: LayerMetadata) -> None:
        temporary = self._work / ids.new("bd")
        temporary.write_bytes(msgspec.json.encode(metadata))
        os.rename(temporary, self._record(key))


def tree_size(root: Path) -> int:
    """Bytes in the regular files under ``root``."""
    return sum(
        info.st_size
        for info in (_lstat(entry) for entry in _walk(root))
        if stat.S_ISREG(info.st_mode)
    )


def remove_tree(path: Path) -> None:
    """Delete ``path`` and all in it, also directories without write permission; absent is fine."""

    def retry(function: object, name: str, _error: object) -> None:
        try:
            os.chmod(os.path.dirname(name), 0o700)
            os.chmod(name, 0o700, follow_symlinks=os.path.islink(name) is False)
        except OSError:
            pass
        try:
            if os.path.isdir(name) and not os.path.islink(name):
                shutil.rmtree(name, ignore_errors=True)
            else:
                os.unlink(name)
        except FileNotFoundError:
            return
        except OSError as error:
            log.debug("left behind", path=name, error=str(error))

    shutil.rmtree(path, onerror=retry)


def _walk(root: Path) -> Iterator[os.DirEntry[str]]:
    pending = [str(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def _lstat(entry: os.DirEntry[str]) -> os.stat_result:
    return entry.stat(follow_symlinks=False)


def _same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev
