"""Packages that apt downloads: kept on the node, so that no build has to fetch them again.

Images tell apt to delete what it downloaded, and apt allows one user of its directory at a time.
So each RUN that installs gets a directory of its own, of links to what is kept, and a configuration
that deletes nothing; neither is in the image.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from homeport.node.builder.merged import MergedView
from homeport.node.layers import layer_key
from homeport.node.runtime.port import Bind

_ARCHIVES = "/var/cache/apt/archives"
_CLEAN = "/etc/apt/apt.conf.d/docker-clean"
_INSTALLS = re.compile(r"\b(?:apt-get|apt)\b[^&|;]*\b(?:install|upgrade|dist-upgrade|build-dep)\b")
_OWN_WISHES = re.compile(r"/var/cache|docker-clean|Dir::Cache|apt\.conf|APT_CONFIG|--download-only")
"""A command that says such a thing has plans of its own with the downloads."""
_DELETING = re.compile(r"(?:DPkg|APT::Update)::Post-Invoke\s*\{.*?\};", re.DOTALL)
_KEEPING = 'Binary::apt::APT::Keep-Downloaded-Packages "true";\n'


class AptDownloads:
    """The packages kept under ``directory``, those of each release of each distribution apart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._keeping = threading.Lock()

    @asynccontextmanager
    async def use(
        self, argv: Sequence[str], view: MergedView, place: Path
    ) -> AsyncGenerator[tuple[Bind, ...]]:
        """What a RUN of ``argv`` in the image ``view`` needs; what it downloads is kept.

        ``place`` is a directory for it, on the file system of what is kept.
        """
        text = " ".join(argv)
        if not _INSTALLS.search(text) or _OWN_WISHES.search(text) or not view.is_dir(_ARCHIVES):
            yield ()
            return
        kept = self._directory / layer_key(view.read_text("/etc/os-release"))
        binds = await asyncio.to_thread(_prepare, kept, view, place)
        try:
            yield binds
        finally:
            await asyncio.to_thread(self._keep, place / "archives", kept)

    def _keep(self, archives: Path, kept: Path) -> None:
        with self._keeping:
            for name in _packages(archives):
                with contextlib.suppress(OSError):  # it is there already, or cannot be kept
                    os.link(archives / name, kept / name, follow_symlinks=False)
                    os.utime(kept / name)


def _packages(folder: Path) -> list[str]:
    """The packages in ``folder``: files, not what a hostile step may have made of their names."""
    with os.scandir(folder) as entries:
        return [
            entry.name
            for entry in entries
            if entry.name.endswith(".deb") and entry.is_file(follow_symlinks=False)
        ]


def _prepare(kept: Path, view: MergedView, place: Path) -> tuple[Bind, ...]:
    kept.mkdir(parents=True, exist_ok=True)
    archives = place / "archives"
    partial = archives / "partial"
    partial.mkdir(parents=True)
    lower = view.find(f"{_ARCHIVES}/partial")
    if lower is not None and os.geteuid() == 0:  # of the user that downloads
        info = lower.stat()
        os.chown(partial, info.st_uid, info.st_gid)
        partial.chmod(info.st_mode & 0o7777)
    for name in _packages(kept):
        with contextlib.suppress(OSError):  # another build made room, or there are too many links
            os.link(kept / name, archives / name)
    binds = [Bind(archives, _ARCHIVES, read_only=False)]
    if view.find(_CLEAN) is not None:
        clean = place / "docker-clean"
        clean.write_text(_DELETING.sub("", view.read_text(_CLEAN)) + _KEEPING)
        clean.chmod(0o644)
        binds.append(Bind(clean, _CLEAN))
    return tuple(binds)
