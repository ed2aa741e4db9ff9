"""Mount a container's overlay root file system, for many layers, on new and older kernels."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from homeport.node.runtime import linux
from homeport.node.runtime.port import ContainerStartError

LAYERS_MAX = 490
"""The kernel takes 500; the rest is ours."""

_OPTIONS_MAX = 4000  # mount(2) takes one page of options


def mount_overlay(
    target: Path, lowers: Sequence[Path], upper: Path, work: Path, links: Path
) -> None:
    """Mount ``lowers`` (topmost first) under ``upper`` at ``target`` in this mount namespace.

    ``userxattr`` makes layers read the same for root and for normal users; ``volatile`` leaves
    the writing-back to who keeps ``upper``. ``links`` is a directory for short names, used where
    the kernel is older than 6.8. Raises ``ContainerStartError`` with the kernel's words.
    """
    if len(lowers) > LAYERS_MAX:
        raise ContainerStartError(
            f"the image has {len(lowers)} layers; a container can have {LAYERS_MAX}"
        )
    try:
        _mount_new(target, lowers, upper, work)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise ContainerStartError(f"the root file system: {error}") from error
        _mount_classic(target, lowers, upper, work, links)


def mount_data(
    target: Path, lowers: Sequence[Path], upper: Path | None, work: Path, links: Path
) -> None:
    """Mount directories of data, not of an image, at ``target``: renaming directories works.

    That needs attributes which only root can set. Without ``upper`` it is read-only, and
    ``lowers`` (topmost first) must be two at least. Raises ``ContainerStartError``.
    """
    try:
        new = linux.NewMount("overlay")
        try:
            new.text("source", "volume")
            for lower in lowers:
                new.text("lowerdir+", str(lower))
            if upper is not None:
                new.text("upperdir", str(upper))
                new.text("workdir", str(work))
                new.flag("volatile")
            for key, value in _DATA_OPTIONS.items():
                new.text(key, value)
            new.attach(str(target))
        finally:
            new.close()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL):
            raise ContainerStartError(f"a volume: {error}") from error
        options = [f"{key}={value}" for key, value in _DATA_OPTIONS.items()]
        if upper is not None:
            options.append("volatile")
        _mount_by_links(target, lowers, upper, work, links, options)


_DATA_OPTIONS = {"redirect_dir": "on", "metacopy": "off", "index": "off", "xino": "off"}


def _mount_new(target: Path, lowers: Sequence[Path], upper: Path, work: Path) -> None:
    new = linux.NewMount("overlay")
    try:
        new.text("source", "overlay")
        for lower in lowers:
            new.text("lowerdir+", str(lower))
        new.text("upperdir", str(upper))
        new.text("workdir", str(work))
        new.flag("userxattr")
        new.flag("volatile")
        new.attach(str(target))
    finally:
        new.close()


def _mount_classic(
    target: Path, lowers: Sequence[Path], upper: Path, work: Path, links: Path
) -> None:
    _mount_by_links(target, lowers, upper, work, links, ["userxattr", "volatile"])


def _mount_by_links(
    target: Path,
    lowers: Sequence[Path],
    upper: Path | None,
    work: Path,
    links: Path,
    more: Sequence[str],
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
        parts.append(f"upperdir={names[-2]},workdir={names[-1]}")
    options = ",".join([*parts, *more])
    if len(options) > _OPTIONS_MAX:
        raise ContainerStartError(
            f"{len(lowers)} layers are too many for this kernel (6.8 or newer takes {LAYERS_MAX})"
        )
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(links)
        linux.mount("overlay", str(target), "overlay", linux.MS_NODEV | linux.MS_NOSUID, options)
    except OSError as error:
        raise ContainerStartError(f"the root file system: {error}") from error
    finally:
        os.fchdir(before)
        os.close(before)
