"""What a container on a stack of layers would see, without mounting it.

Overlay rules: an upper entry hides the lower one of the same name, a character device 0:0 (or a
file marked ``overlay.whiteout``) hides it altogether, a directory marked opaque hides the lower
directory's entries.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

_OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")
_LINKS_MAX = 40
"""As many symbolic links as Linux itself follows in one look-up."""


class MergedView:
    """The merged tree of ``layers`` (lowest first). Paths are absolute inside that tree."""

    def __init__(self, layers: Sequence[Path]) -> None:
        self._layers = tuple(layers)

    def resolve(self, path: str, *, follow_last: bool = True) -> str:
        """``path`` with symbolic links followed inside the tree; missing parts are kept as named.

        Raises ``OSError`` for a loop of links.
        """
        pending = list(reversed([part for part in PurePosixPath(path).parts if part != "/"]))
        done: list[str] = []
        links = 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            host = self._find([*done, part])
            if host is None or not host.is_symlink() or (not pending and not follow_last):
                done.append(part)
                continue
            links += 1
            if links > _LINKS_MAX:
                raise OSError(f"too many levels of symbolic links: {path}")
            target = PurePosixPath(os.readlink(host))
            if target.is_absolute():
                done = []
            pending.extend(reversed([name for name in target.parts if name != "/"]))
        return "/" + "/".join(done)

    def find(self, path: str, *, follow: bool = True) -> Path | None:
        """The host file behind ``path``, or ``None``; symbolic links are followed in the tree."""
        resolved = self.resolve(path, follow_last=follow)
        parts = [part for part in resolved.split("/") if part]
        return self._find(parts)

    def is_dir(self, path: str) -> bool:
        """Whether ``path`` is a directory (or a link to one)."""
        host = self.find(path)
        return host is not None and host.is_dir() and not host.is_symlink()

    def walk(self, path: str) -> Iterator[tuple[str, Path, os.stat_result]]:
        """Everything under directory ``path``: (name relative to it, host file, its ``lstat``).

        Parents come before children, names in order. Links are given as they are.
        """
        parts = [part for part in self.resolve(path).split("/") if part]
        yield from _walk(self._directories(parts), "")

    def _directories(self, parts: list[str]) -> list[str]:
        """The layers' directories that make up the merged one, topmost first."""
        found: list[str] = []
        for layer in reversed(self._layers):
            entry, hidden = _look(layer, parts) if parts else (layer, False)
            if entry is not None:
                if not stat.S_ISDIR(os.lstat(entry).st_mode):
                    break
                found.append(str(entry))
                if is_opaque(str(entry)):
                    break
            if hidden:
                break
        return found

    def read_text(self, path: str) -> str:
        """Contents of a text file; empty if there is none."""
        host = self.find(path)
        return host.read_text(errors="replace") if host is not None and host.is_file() else ""

    def _find(self, parts: list[str]) -> Path | None:
        """Look ``parts`` up without following links; a link on the way means: not there."""
        for index in range(len(self._layers) - 1, -1, -1):
            found, hidden = _look(self._layers[index], parts)
            if found is not None:
                return found
            if hidden:
                return None
        return None


def _walk(directories: list[str], prefix: str) -> Iterator[tuple[str, Path, os.stat_result]]:
    merged: dict[str, list[tuple[str, os.stat_result]]] = {}
    closed: set[str] = set()
    for directory in directories:
        for entry in os.scandir(directory):
            if entry.name in closed:
                continue
            info = entry.stat(follow_symlinks=False)
            if is_whiteout(info):
                closed.add(entry.name)
                continue
            is_directory = stat.S_ISDIR(info.st_mode)
            if entry.name in merged and not is_directory:
                closed.add(entry.name)  # a file below a directory is hidden by it
                continue
            merged.setdefault(entry.name, []).append((entry.path, info))
            if not is_directory or is_opaque(entry.path):
                closed.add(entry.name)
    for name in sorted(merged):
        path, info = merged[name][0]
        relative = prefix + name
        yield relative, Path(path), info
        if stat.S_ISDIR(info.st_mode):
            yield from _walk([each for each, _ in merged[name]], relative + "/")


def _look(layer: Path, parts: list[str]) -> tuple[Path | None, bool]:
    """``(entry in this layer, whether lower layers are hidden)``."""
    current = str(layer)
    hidden = False
    for position, part in enumerate(parts):
        current = f"{current}/{part}"
        try:
            info = os.lstat(current)
        except (FileNotFoundError, NotADirectoryError):
            return None, hidden
        if is_whiteout(info):
            return None, True
        if position == len(parts) - 1:
            return Path(current), hidden
        if not stat.S_ISDIR(info.st_mode):
            return None, True
        hidden = hidden or is_opaque(current)
    return Path(current), False


def is_whiteout(info: os.stat_result) -> bool:
    """Whether this entry only says that the lower one is deleted."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def is_opaque(path: str) -> bool:
    """Whether this directory hides the entries of the lower one."""
    for name in _OPAQUE:
        try:
            if os.getxattr(path, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False
