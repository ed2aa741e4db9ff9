"""Writing files into a new layer as COPY and ADD do, without running a container."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from homeport.node.builder.context import ContextFile, Selection
from homeport.node.builder.errors import BuildError
from homeport.node.builder.merged import MergedView


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """One COPY: ``destination`` is absolute, a trailing slash says it is a directory.

    ``owner`` is (uid, gid); ``mode`` overrides the files' own permission bits.
    """

    sources: tuple[Selection, ...]
    destination: str
    owner: tuple[int, int] = (0, 0)
    mode: int | None = None


class LayerWriter:
    """Puts files and directories into ``upper``, a new layer on top of ``view``."""

    def __init__(self, view: MergedView, upper: Path) -> None:
        self._view = view
        self._upper = upper
        self._upper.mkdir(parents=True, exist_ok=True)

    def copy(self, plan: CopyPlan) -> None:
        """Carry out ``plan``. Raises ``BuildError`` where a file would replace a directory."""
        several = len(plan.sources) > 1 or any(source.is_tree for source in plan.sources)
        into = several or plan.destination.endswith("/") or self._view.is_dir(plan.destination)
        if into:
            self.make_directory(plan.destination, plan.owner)
        for source in plan.sources:
            for name, file in source.files.items():
                target = posixpath.join(plan.destination, name) if into else plan.destination
                self._put(target, file, plan)

    def make_directory(self, path: str, owner: tuple[int, int] = (0, 0)) -> str:
        """Have ``path`` in the layer, as the lower layers have it or new; returns it resolved."""
        resolved = self._view.resolve(path)
        current = ""
        for part in [part for part in resolved.split("/") if part]:
            current = f"{current}/{part}"
            target = self._upper / current.lstrip("/")
            if target.is_dir() and not target.is_symlink():
                continue
            lower = self._view.find(current, follow=False)
            if lower is not None and not lower.is_dir():
                raise BuildError(
                    f"{current} is a file in the image, so nothing can be put under it"
                )
            target.mkdir()
            if lower is None:
                _finish(target, 0o755, owner)
            else:
                info = lower.stat()
                _finish(target, stat.S_IMODE(info.st_mode), (info.st_uid, info.st_gid))
        return resolved

    def _put(self, path: str, file: ContextFile, plan: CopyPlan) -> None:
        folder = self.make_directory(posixpath.dirname(path) or "/", plan.owner)
        name = posixpath.basename(path)
        resolved = posixpath.join(folder, name)
        target = self._upper / resolved.lstrip("/")
        if target.is_dir() or self._view.is_dir(resolved):
            raise BuildError(f"{resolved} is a directory in the image, a file cannot replace it")
        if target.exists() or target.is_symlink():
            target.unlink()
        if file.path is None:
            target.write_bytes(file.data)
        else:
            shutil.copyfile(file.path, target)
        _finish(target, file.mode if plan.mode is None else plan.mode, plan.owner)


def owner_of(text: str, view: MergedView) -> tuple[int, int]:
    """``user[:group]`` (names or numbers) as (uid, gid). Raises ``BuildError`` for unknown names."""
    if not text:
        return 0, 0
    user, _, group = text.partition(":")
    uid, gid = _look_up(user, "/etc/passwd", view)
    return uid, (_look_up(group, "/etc/group", view)[0] if group else gid)


def home_of(user: str, view: MergedView) -> str:
    """The home directory of ``user`` (name or number) in the image; ``/root`` or ``/`` if unknown."""
    name = user.partition(":")[0] or "0"
    for line in view.read_text("/etc/passwd").splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and name in (fields[0], fields[2]):
            return fields[5] or "/"
    return "/root" if name in ("0", "root") else "/"


def _look_up(name: str, file: str, view: MergedView) -> tuple[int, int]:
    """(number of ``name``, its group's number if ``file`` is the table of users)."""
    for line in view.read_text(file).splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and name in (fields[0], fields[2]):
            return int(fields[2]), int(fields[3]) if file.endswith("passwd") else 0
    if name.isdigit():
        return int(name), int(name)
    raise BuildError(f"--chown: {name} is not in the image's {file}")


def _finish(target: Path, mode: int, owner: tuple[int, int]) -> None:
    info = target.stat()
    if (info.st_uid, info.st_gid) != owner and os.geteuid() == 0:
        os.chown(target, *owner)
    target.chmod(mode)
