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

    ``owner`` (uid, gid) overrides the sources' own (root's, where they have none), ``mode`` the
    files' permission bits.
    """

    sources: tuple[Selection, ...]
    destination: str
    owner: tuple[int, int] | None = None
    mode: int | None = None


class LayerWriter:
    """Puts files and directories into ``upper``, a new layer on top of ``view``.

    With ``share`` it links instead of copying where it can: nobody may write to ``upper`` then.
    """

    def __init__(self, view: MergedView, upper: Path, *, share: bool = True) -> None:
        self._view = view
        self._share = share
        self._upper = upper
        self._upper.mkdir(parents=True, exist_ok=True)

    def copy(self, plan: CopyPlan) -> None:
        """Carry out ``plan``. Raises ``BuildError`` where a file would replace a directory."""
        several = len(plan.sources) > 1 or any(source.is_tree for source in plan.sources)
        into = several or plan.destination.endswith("/") or self._view.is_dir(plan.destination)
        if into:
            self.make_directory(plan.destination, plan.owner or (0, 0))
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

    def _has_directory(self, path: str) -> bool:
        target = self._upper / self._view.resolve(path).lstrip("/")
        return target.is_dir() or self._view.is_dir(path)

    def _put(self, path: str, file: ContextFile, plan: CopyPlan) -> None:
        owner = plan.owner if plan.owner is not None else file.owner or (0, 0)
        mode = file.mode if plan.mode is None else plan.mode
        if file.is_dir:
            is_new = not self._has_directory(path)
            resolved = self.make_directory(path, owner)
            if is_new:  # one that was there keeps its mode
                _finish(self._upper / resolved.lstrip("/"), file.mode, owner)
            return
        folder = self.make_directory(posixpath.dirname(path) or "/", plan.owner or (0, 0))
        resolved = posixpath.join(folder, posixpath.basename(path))
        target = self._upper / resolved.lstrip("/")
        if target.is_dir() and not target.is_symlink():
            raise BuildError(f"{resolved} is a directory in the image, a file cannot replace it")
        lower = self._view.find(resolved, follow=False)
        if lower is not None and lower.is_dir() and not lower.is_symlink():
            raise BuildError(f"{resolved} is a directory in the image, a file cannot replace it")
        if target.exists() or target.is_symlink():
            target.unlink()
        if file.link is not None:
            target.symlink_to(file.link)
            _own(target, owner)
        elif file.path is None:
            target.write_bytes(file.data)
            _finish(target, mode, owner)
        elif not (self._share and _link(file.path, target, mode, owner)):
            _copy_file(file.path, target)
            _finish(target, mode, owner)


def _link(source: Path, target: Path, mode: int, owner: tuple[int, int]) -> bool:
    """Link instead of copying: sources are in read-only trees, so the inode never changes."""
    info = source.lstat()
    if stat.S_IMODE(info.st_mode) != mode or (info.st_uid, info.st_gid) != owner:
        return False
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or the inode has all the links it can have
        return False
    return True


def _copy_file(source: Path, target: Path) -> None:
    info = source.lstat()
    if stat.S_ISREG(info.st_mode):
        shutil.copyfile(source, target)
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
    elif not stat.S_ISSOCK(info.st_mode):
        os.mknod(target, info.st_mode, info.st_rdev)


def owner_of(text: str, view: MergedView) -> tuple[int, int] | None:
    """``user[:group]`` (names or numbers) as (uid, gid), ``None`` if empty.

    Raises ``BuildError`` for unknown names.
    """
    if not text:
        return None
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
    _own(target, owner)
    target.chmod(mode)


def _own(target: Path, owner: tuple[int, int]) -> None:
    info = target.lstat()
    if (info.st_uid, info.st_gid) != owner and os.geteuid() == 0:
        os.chown(target, *owner, follow_symlinks=False)
