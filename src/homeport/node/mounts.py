"""Mounts on a node's disk: one directory a manifest, with its files at their absolute paths.

Such a directory is an overlay layer over the image's. It is built once, beside its final name, and
renamed into place; its files are hard links where the source has the right mode.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Coroutine, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.kernel.ids import new
from homeport.link.messages import ManifestFile

T = TypeVar("T")

FETCHES_MAX = 16
"""Files fetched at once for one mount."""
_STICKY = ("tmp", "var/tmp")
"""Directories whose mode in a layer must stay what every image has."""


class Source(Protocol):
    """``FileSource`` as this module uses it."""

    def local(self, sha256: str) -> Path | None: ...

    async def manifest(self, digest: str) -> list[ManifestFile]: ...

    async def download(self, sha256: str, target: Path) -> None: ...


class Joined:
    """Runs at most one coroutine a key; others who ask for the key meanwhile share its result."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    async def run(self, key: str, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, or of the one under way. An asker may be cancelled alone."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(work)
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
        else:
            work.close()
        return await asyncio.shield(task)


class MountStore:
    """The mounts of one node, in ``root``; one process a store."""

    def __init__(self, root: Path, source: Source) -> None:
        self.root = root.absolute()
        self._source = source
        self._joined = Joined()
        self._work = self.root / ".work"
        self._files = self.root / ".files"
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        self._files.mkdir(exist_ok=True)

    def path(self, digest: str) -> Path:
        """The directory of mount ``digest`` (whether or not it exists)."""
        return self.root / digest

    async def layer(self, digest: str) -> Path:
        """The layer directory of mount ``digest``, built if it is not there.

        Raises ``NotFoundError`` or ``UnavailableError`` if the server does not give its files,
        ``InvalidError`` if the manifest names a path outside the container's root.
        """
        target = self.path(digest)
        if not target.is_dir():
            await self._joined.run(digest, self._build(digest, target))
        return target

    async def _build(self, digest: str, target: Path) -> None:
        files = await self._source.manifest(digest)
        for file in files:
            check_name(file.name)
        work = self._work / new("mo")
        try:
            missing = await asyncio.to_thread(self._place, files, work, False)
            if missing:
                await self._fetch(missing, work)
            os.rename(work, target)
        finally:
            if work.exists():
                await asyncio.to_thread(shutil.rmtree, work, True)

    async def _fetch(self, missing: list[ManifestFile], work: Path) -> None:
        limit = asyncio.Semaphore(FETCHES_MAX)

        async def one(sha256: str) -> None:
            async with limit:
                await self._source.download(sha256, self._cached(sha256))

        hashes = {file.sha256 for file in missing}
        await asyncio.gather(*(one(sha256) for sha256 in sorted(hashes)))
        left = await asyncio.to_thread(self._place, missing, work, True)
        if left:
            raise NotFoundError(f"file {left[0].sha256} of a mount vanished while it was built")

    def _cached(self, sha256: str) -> Path:
        return self._files / sha256

    def _place(
        self, files: Iterable[ManifestFile], work: Path, fetched: bool
    ) -> list[ManifestFile]:
        """Put the files that are on this disk under ``work``; returns the others."""
        missing: list[ManifestFile] = []
        work.mkdir(exist_ok=True)
        for name in _STICKY:
            if any(PurePosixPath(file.name).is_relative_to(f"/{name}") for file in files):
                (work / name).mkdir(parents=True, exist_ok=True)
                (work / name).chmod(0o1777)
        for file in files:
            source = self._source.local(file.sha256)
            if source is None or fetched:
                cached = self._cached(file.sha256)
                source = cached if cached.exists() else source
            if source is None:
                missing.append(file)
                continue
            place_file(source, work / file.name.lstrip("/"), file.mode)
        return missing


def check_name(name: str) -> None:
    """Raise ``InvalidError`` unless ``name`` is absolute and stays inside the root."""
    path = PurePosixPath(name)
    if not path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or "\0" in name:
        raise InvalidError(f"a mount names the file {name!r}, which is not a path in a container")


def place_file(source: Path, target: Path, mode: int) -> None:
    """Hard-link ``source`` at ``target`` if its mode is right and the disk allows it, else copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = (mode & 0o777) or 0o644
    if source.stat().st_mode & 0o777 == mode:
        try:
            os.link(source, target)
        except FileExistsError:
            return
        except OSError:
            pass  # another file system, or too many links
        else:
            return
    shutil.copyfile(source, target)
    target.chmod(mode)
