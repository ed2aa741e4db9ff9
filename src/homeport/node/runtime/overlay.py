"""Overlays: of a container's root file system, with many layers, and of data; on older kernels too."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from homeport.node.runtime import linux
from homeport.node.runtime.port import ContainerStartError

LAYERS_MAX = 490
"""The kernel takes 500; the rest is ours."""

_OPTIONS_MAX = 4000  # mount(2) takes one page of options
_TOO_OLD: Final = (errno.ENOSYS, errno.EINVAL)
"""What a kernel says that does not know the newer way to mount."""


def root_tree(lowers: Sequence[Path], upper: Path, work: Path, target: Path, links: Path) -> int:
    """An overlay of ``lowers`` (topmost first) under ``upper``, mounted nowhere; a descriptor.

    ``userxattr`` makes layers read the same for root and for normal users; ``volatile`` leaves
    the writing-back to who keeps ``upper``. ``target`` is a directory to mount it on for a moment,
    ``links`` one for short names, used where the kernel is older than 6.8. Raises
    ``ContainerStartError`` with the kernel's words.
    """
    if len(lowers) > LAYERS_MAX:
        raise ContainerStartError(
            f"the image has {len(lowers)} layers; a container can have {LAYERS_MAX}"
        )
    try:
        return _new(_ROOT, lowers, upper, work)
    except OSError as error:
        if error.errno not in _TOO_OLD:
            raise ContainerStartError(f"{_ROOT.name}: {error}") from error
    _mount_by_links(_ROOT, target, lowers, upper, work, links)
    top = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return linux.clone_mount(top)
    finally:
        os.close(top)
        linux.unmount(str(target))


def mount_data(
    target: Path, lowers: Sequence[Path], upper: Path | None, work: Path, links: Path
) -> None:
    """Mount directories of data, not of an image, at ``target``: renaming directories works.

    That needs attributes which only root can set. Without ``upper`` it is read-only, and
    ``lowers`` (topmost first) must be two at least. Raises ``ContainerStartError``.
    """
    try:
        tree = _new(_DATA, lowers, upper, work)
    except OSError as error:
        if error.errno not in _TOO_OLD:
            raise ContainerStartError(f"{_DATA.name}: {error}") from error
        _mount_by_links(_DATA, target, lowers, upper, work, links)
        return
    try:
        linux.place_mount(tree, str(target))
    finally:
        os.close(tree)


@dataclass(frozen=True, slots=True)
class _Kind:
    """``name`` for messages, ``source`` as in tables of mounts; options without a value are flags."""

    name: str
    source: str
    options: dict[str, str]


_ROOT: Final = _Kind("the root file system", "overlay", {"userxattr": ""})
_DATA: Final = _Kind(
    "a volume",
    "volume",
    {"redirect_dir": "on", "metacopy": "off", "index": "off", "xino": "off"},
)


def _new(kind: _Kind, lowers: Sequence[Path], upper: Path | None, work: Path) -> int:
    new = linux.NewMount("overlay")
    try:
        new.text("source", kind.source)
        for lower in lowers:
            new.text("lowerdir+", str(lower))
        if upper is not None:
            new.text("upperdir", str(upper))
            new.text("workdir", str(work))
            new.flag("volatile")
        for key, value in kind.options.items():
            if value:
                new.text(key, value)
            else:
                new.flag(key)
        return new.create()
    finally:
        new.close()


def _mount_by_links(
    kind: _Kind,
    target: Path,
    lowers: Sequence[Path],
    upper: Path | None,
    work: Path,
    links: Path,
) -> None:
    """``mount(2)``: layers by short symbolic links, relative to a directory of theirs.

    Changes the working directory, so the calling thread must have its own (``CLONE_FS``).
    """
    links.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    directories = [*lowers] if upper is None else [*lowers, upper, work]
    for index, directory in enumerate(directories):
        name = f"{index:x}"
        link = links / name
        if link.is_symlink():
            link.unlink()
        link.symlink_to(directory)
        names.append(name)
    parts = [f"lowerdir={':'.join(names[: len(lowers)])}"]
    if upper is not None:
        parts.append(f"upperdir={names[-2]},workdir={names[-1]},volatile")
    parts += [f"{key}={value}" if value else key for key, value in kind.options.items()]
    options = ",".join(parts)
    if len(options) > _OPTIONS_MAX:
        raise ContainerStartError(
            f"{len(lowers)} layers are too many for this kernel (6.8 or newer takes {LAYERS_MAX})"
        )
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(links)
        linux.mount(kind.source, str(target), "overlay", linux.MS_NODEV | linux.MS_NOSUID, options)
    except OSError as error:
        raise ContainerStartError(f"{kind.name}: {error}") from error
    finally:
        os.fchdir(before)
        os.close(before)
