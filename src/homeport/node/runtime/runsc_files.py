"""The files of a gVisor container, as mounts on the host and as ``runsc`` is told of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from homeport.node.runtime import linux
from homeport.node.runtime.arguments import mount_plan
from homeport.node.runtime.port import ContainerSpec

_TMP: Final = "/tmp"  # noqa: S108
STARTING: Final = f"{_TMP}/.homeport-starting"
"""A file that is there while gVisor starts (``occupy_tmp``)."""


def mount_data(spec: ContainerSpec, root: Path) -> None:
    """Mount what the container gets besides its image, in the tree at ``root``."""
    plain = linux.MS_NOSUID | linux.MS_NODEV
    for name in ("proc", "dev", "sys"):
        # gVisor has its own there; who looks at the files from outside finds nothing, and leaves it
        linux.mount("tmpfs", str(root / name), "tmpfs", plain | linux.MS_RDONLY, "size=0,mode=755")
    for mount in mount_plan(spec, root):
        if mount.source.startswith("/dev/"):
            continue  # a terminal: it gets one of its own
        target = str(root / mount.target.lstrip("/"))
        if not mount.source:
            linux.mount("tmpfs", target, "tmpfs", plain, "mode=1777")
            continue
        linux.mount(mount.source, target, "", linux.MS_BIND | linux.MS_REC)
        flags = linux.MS_REMOUNT | linux.MS_BIND | plain
        linux.mount("none", target, "", flags | (linux.MS_RDONLY if mount.read_only else 0))


def uses_tmp(spec: ContainerSpec) -> bool:
    """Whether something of the container is at or below ``/tmp`` when it starts."""
    targets = [*spec.tmpfs, *(bind.target for bind in spec.binds), spec.workdir]
    return any(f"{target}/".startswith(f"{_TMP}/") for target in targets)


def occupy_tmp(root: Path) -> None:
    """Put a file into ``/tmp``, for as long as gVisor starts.

    If the directory were empty, gVisor would mount a tmpfs of its own there for good, which no
    snapshot sees.
    """
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            place = linux.open_in_root(fd, _TMP, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return  # an image without one
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(os.path.basename(STARTING), flags, 0o600, dir_fd=place))
        finally:
            os.close(place)
    finally:
        os.close(fd)


def gvisor_mounts(spec: ContainerSpec, root: Path) -> list[dict[str, Any]]:
    """What gVisor is to mount itself."""

    def mount(target: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
        return {
            "destination": target,
            "type": kind,
            "source": source or kind,
            "options": ["nosuid", "nodev", *options],
        }

    mounts = [
        mount("/proc", "proc", "noexec"),
        mount("/dev", "tmpfs", "mode=755"),
        mount("/dev/pts", "devpts", "noexec"),
        mount("/dev/shm", "tmpfs", "mode=1777"),  # noqa: S108
        mount("/sys", "sysfs", "noexec", "ro"),
    ]
    if uses_tmp(spec) and not (root / "tmp").is_symlink():  # else see occupy_tmp
        mounts.append(mount("/tmp", "bind", "rbind", "rw", source=str(root / "tmp")))  # noqa: S108
    return mounts
