"""What builds download and keep for the next one, within one bound: the least recently used goes first.

Everything here can be had again. Each cache is a directory below ``<root>``, of units that go whole:
a package's file, a wheel that uv unpacked, the directory of a ``--mount=type=cache``. When a unit was
last used its files say (a file system that notes reading, as they all do by default once a day and
file, or the cache itself). A cache that a build has mounted is left alone until the build is done
with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import stat
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from homeport.kernel import ids
from homeport.node.layers import remove_tree

log = structlog.get_logger(__name__)

APT: Final = "apt"
BYTECODE: Final = "bytecode"
DOWNLOADS: Final = "downloads"
MOUNTS: Final = "mounts"
PIP: Final = "pip"
REGISTRY: Final = "registry"
UV: Final = "uv"

CONTENTS: Final[Mapping[str, str]] = {
    APT: "packages that apt downloaded",
    BYTECODE: "bytecode of packages that uv installed",
    DOWNLOADS: "files and repositories that ADD names",
    MOUNTS: "directories of RUN --mount=type=cache",
    PIP: "packages that pip downloaded or built",
    REGISTRY: "blobs of images from registries",
    UV: "packages that uv unpacked",
}
"""The caches, and what is in them."""

SHARE: Final = 10
"""Without a setting caches may take this part of their disk: a tenth."""
_AFTER: Final = 0.9
"""How full, of their bound, caches are after some was deleted: not one package at a time."""
_MARK: Final = ".used"
_POINTER_BYTES_MAX: Final = 65_536
_UV_NAME: Final = re.compile(rb"[A-Za-z0-9_-]{12,32}")
"""How uv names what it unpacked."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What goes together. ``used_at`` in Unix seconds, ``size`` in bytes of the disk."""

    used_at: float
    size: int
    paths: tuple[Path, ...]


Finder = Callable[[Path], Iterator[Unit]]


def default_bound(root: Path) -> int:
    """Bytes of caches that a node at ``root`` keeps by itself."""
    return shutil.disk_usage(root).total // SHARE


def touch(path: Path) -> None:
    """Say that ``path`` was used now, whether or not somebody reads it. Raises nothing.

    Of a directory a file beside it says so: its own times change with every look into it.
    """
    with contextlib.suppress(OSError):
        if path.is_dir():
            _mark(path).touch()
        else:
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _mark(directory: Path) -> Path:
    return directory.with_name(directory.name + _MARK)


# ── what a cache consists of ────────────────────────────────────────────────────────────────────


def _children(root: Path, depth: int = 1) -> Iterator[Unit]:
    """What is ``depth`` levels below ``root``, each one a unit."""
    for path in list(root.glob("/".join(["*"] * depth))):
        mark = _mark(path)
        with contextlib.suppress(FileNotFoundError):
            if not path.name.endswith(_MARK):
                yield _whole([mark, path] if mark.exists() else [path])
            elif not path.with_name(path.name.removesuffix(_MARK)).exists():
                yield _whole([path])


def _nested(root: Path) -> Iterator[Unit]:
    return _children(root, 2)


def _pip(root: Path) -> Iterator[Unit]:
    """A response with its body, a wheel that pip built with what it says of its origin."""
    groups: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in _files(root):
        is_built = "wheels" in path.relative_to(root).parts
        groups[path.parent if is_built else path.with_name(path.name.removesuffix(".body"))] += [
            path
        ]
    for paths in groups.values():
        with contextlib.suppress(FileNotFoundError):
            yield _whole(sorted(paths))  # the response before its body


def _uv(root: Path) -> Iterator[Unit]:
    """A wheel that was unpacked, with what names it; each other store of uv's as a whole.

    A part of an unpacked wheel must never go: uv would install what is left.
    """
    named: defaultdict[bytes, list[Path]] = defaultdict(list)
    for kind in ("wheels-v*", "sdists-v*"):
        for path in (file for store in root.glob(kind) for file in _files(store)):
            with contextlib.suppress(OSError):
                for name in _names_in(path):
                    named[name].append(path)
    for path in list(root.glob("archive-v*/*")):
        with contextlib.suppress(FileNotFoundError):
            unit = _whole([path])
            pointers = named.get(os.fsencode(path.name), [])
            yield Unit(unit.used_at, unit.size, (*pointers, path))
    for path in list(root.glob("*-v*")):
        if not path.name.startswith(("archive-", "wheels-")):
            with contextlib.suppress(FileNotFoundError):
                yield _whole([path])


def _names_in(pointer: Path) -> set[bytes]:
    if pointer.is_symlink():
        return {os.fsencode(os.path.basename(os.readlink(pointer)))}
    if pointer.stat().st_size > _POINTER_BYTES_MAX:
        return set()
    return set(_UV_NAME.findall(pointer.read_bytes()))


def _files(root: Path) -> Iterator[Path]:
    """Files and links, also those to directories."""
    for folder, folders, names in os.walk(root):
        for name in names:
            yield Path(folder, name)
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                yield Path(folder, name)


def _whole(paths: Iterable[Path]) -> Unit:
    """One unit of files and directories. Raises ``FileNotFoundError``."""
    found = tuple(paths)
    used_at, size = 0.0, 0
    for path in found:
        for info in _entries(path):
            used_at = max(used_at, info.st_mtime)
            if not stat.S_ISDIR(info.st_mode):  # counting reads directories
                used_at = max(used_at, info.st_atime)
            size += info.st_blocks * 512
    return Unit(used_at, size, found)


def _entries(path: Path) -> Iterator[os.stat_result]:
    yield path.lstat()
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(folder, name))


_FINDERS: Final[Mapping[str, Finder]] = {
    APT: _nested,
    BYTECODE: _children,
    DOWNLOADS: _children,
    MOUNTS: _children,
    PIP: _pip,
    REGISTRY: _nested,
    UV: _uv,
}


def directory(root: Path, name: str) -> Path:
    """Where the cache of that name is, in the builder's directory ``root``."""
    return root / "registry" / "blobs" if name == REGISTRY else root / "cache" / name


def sizes(root: Path) -> dict[str, int]:
    """Bytes of the disk that each cache of the builder's directory ``root`` takes. Blocks."""
    places = {str(directory(root, name)): name for name in _FINDERS}
    there = [place for place in places if os.path.isdir(place)]
    if not there:
        return {}
    # a program: it counts a million files in seconds, and nothing of this process waits for it
    done = subprocess.run(
        ["du", "--summarize", "--block-size=1", "--one-file-system", "--", *there],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what went meanwhile
        text=True,
    )
    rows = (line.split("\t", 1) for line in done.stdout.splitlines())
    return {places[place]: int(count) for count, place in rows}


# ── their bound ─────────────────────────────────────────────────────────────────────────────────


class Caches:
    """The caches of a builder, whose directory is ``root``.

    ``look`` whenever some may have grown. Times are those of the file system.
    """

    def __init__(self, root: Path, bytes_max: int) -> None:
        self.root = root.absolute()
        self._bytes_max = bytes_max
        self._users: Counter[tuple[str, str]] = Counter()
        self._gates: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._is_short = False
        self._shrinking = asyncio.Lock()
        self._trash = self.root / "cache" / "trash"
        remove_tree(self._trash)  # of a process that was killed

    def directory(self, name: str) -> Path:
        """Where the cache of that name is."""
        return directory(self.root, name)

    # ── who uses them ───────────────────────────────────────────────────────────────────────

    async def hold(self, name: str, key: str = "") -> None:
        """Let nothing go from the cache (or of its unit ``key``) until ``release``."""
        async with self._gates[name]:
            self._users[name, key] += 1

    def release(self, name: str, key: str = "") -> None:
        """Take one ``hold`` back."""
        self._users[name, key] -= 1
        self._users = +self._users
        if self._is_short:  # there was too much, and it was in use
            self.look()

    @asynccontextmanager
    async def use(self, *names: str, key: str = "") -> AsyncGenerator[None]:
        """``hold`` these caches for the length of a block."""
        held: list[str] = []
        try:
            for name in names:
                await self.hold(name, key)
                held.append(name)
            yield
        finally:
            for name in held:
                self.release(name, key)

    # ── making room ─────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """See whether the caches still fit, in the background."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._keep_bound())
        else:
            self._again = True

    async def prune(self) -> int:
        """Delete all that no build uses; the bytes that were freed."""
        freed, _ = await self._shrink(0)
        return freed

    async def stop(self) -> None:
        """Let what is under way end."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _keep_bound(self) -> None:
        while True:
            self._again = False
            try:
                total = await self._size()
                if total > self._bytes_max:
                    freed, left = await self._shrink(int(self._bytes_max * _AFTER))
                    self._is_short = left > 0
                    if freed:
                        log.info("caches of builds were deleted to make room", bytes=freed)
            except OSError as error:
                log.warning("caches of builds could not be kept in bounds", error=str(error))
            if not self._again:
                return

    async def _size(self) -> int:
        return sum((await asyncio.to_thread(sizes, self.root)).values())

    async def _shrink(self, bytes_max: int) -> tuple[int, int]:
        """Delete down to ``bytes_max``: bytes that were freed, and those over it that are in use."""
        async with self._shrinking:
            return await self._shrunk(bytes_max)

    async def _shrunk(self, bytes_max: int) -> tuple[int, int]:
        found = await asyncio.to_thread(self._found)
        over = await self._size() - bytes_max
        chosen: defaultdict[str, list[Unit]] = defaultdict(list)
        ages = sorted(
            (unit.used_at, name, number)
            for name, units in found.items()
            for number, unit in enumerate(units)
        )
        for _, name, number in ages:
            if over <= 0 < bytes_max:
                break
            unit = found[name][number]
            if not self._is_used(name, unit):
                chosen[name].append(unit)
                over -= unit.size
        freed = 0
        for name, units in chosen.items():
            async with self._gates[name]:  # who wants to use it waits
                idle = [unit for unit in units if not self._is_used(name, unit)]
                await asyncio.to_thread(self._put_away, idle)
            freed += sum(unit.size for unit in idle)
        await asyncio.to_thread(remove_tree, self._trash)
        return freed, max(0, over)

    def _found(self) -> dict[str, list[Unit]]:
        return {
            name: list(find(directory))
            for name, find in _FINDERS.items()
            if (directory := self.directory(name)).is_dir()
        }

    def _is_used(self, name: str, unit: Unit) -> bool:
        return bool(self._users[name, ""] or self._users[name, unit.paths[-1].name])

    def _put_away(self, units: Iterable[Unit]) -> None:
        """Take units out at once; deleting what is in them may take long."""
        self._trash.mkdir(parents=True, exist_ok=True)
        for unit in units:
            for path in unit.paths:
                try:
                    path.rename(self._trash / ids.new("bd"))
                except FileNotFoundError:
                    continue
                except OSError:  # it is on another file system
                    _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
