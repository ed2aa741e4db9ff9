"""What bubblewrap is told: mounts, masks, namespaces, capabilities, environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from homeport.node.runtime import linux
from homeport.node.runtime.port import DEFAULT_PATH, ContainerSpec, ContainerStartError
from homeport.node.runtime.users import User

CAPABILITIES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
)  # fmt: skip

MASKED: Final = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
"""Shown empty, as container engines do."""

READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def sandbox_arguments(spec: ContainerSpec, root: Path, sys: Path | None, user: User) -> list[str]:
    """All options but those that carry descriptors. Call it while ``root`` is mounted."""
    arguments = ["--bind", str(root), "/"]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    arguments += ["--perms", "1777", "--tmpfs", "/dev/shm", "--mqueue", "/dev/mqueue"]
    arguments += ["--ro-bind", str(sys or "/sys"), "/sys"]
    for path in READ_ONLY:
        if os.path.exists(path):
            arguments += ["--ro-bind", path, path]
    for path in MASKED:
        if os.path.isdir(path):
            arguments += ["--perms", "0555", "--tmpfs", path, "--remount-ro", path]
        elif os.path.exists(path):
            arguments += ["--ro-bind", "/dev/null", path]
    arguments += _mounts(spec, root)
    for device in spec.devices:
        arguments += ["--dev-bind", str(device.source), device.target]
    arguments += ["--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts"]
    arguments += ["--hostname", hostname(spec)]
    arguments += ["--chdir", working_directory(spec, root), "--clearenv"]
    for name, value in environment(spec, user).items():
        arguments += ["--setenv", name, value]
    arguments += ["--cap-drop", "ALL"]
    for capability in CAPABILITIES:
        arguments += ["--cap-add", capability]
    return arguments


def hostname(spec: ContainerSpec) -> str:
    """The asked host name, or one made of the id."""
    return (spec.hostname or spec.id.lower())[:63]


def environment(spec: ContainerSpec, user: User) -> dict[str, str]:
    """The asked environment, with PATH and HOME if it lacks them. Raises for what cannot be."""
    result = {"PATH": DEFAULT_PATH, "HOME": user.home, **spec.env}
    for name, value in result.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ContainerStartError(f"an environment variable cannot be called {name!r}")
    return result


@dataclass(frozen=True, slots=True)
class Mount:
    """Something mounted in a container: the host's ``source``, or a tmpfs if that is empty."""

    target: str
    source: str
    read_only: bool


def mount_plan(spec: ContainerSpec, root: Path) -> list[Mount]:
    """The asked mounts, outer ones first, with the image's symbolic links resolved inside it."""
    wanted = [Mount(target, "", read_only=False) for target in spec.tmpfs]
    wanted += [Mount(bind.target, str(bind.source), bind.read_only) for bind in spec.binds]
    wanted.sort(key=lambda mount: mount.target.rstrip("/").count("/"))
    return [replace(mount, target=_place(root, mount.target)) for mount in wanted]


def _mounts(spec: ContainerSpec, root: Path) -> Iterator[str]:
    for mount in mount_plan(spec, root):
        if not mount.source:
            yield from ("--perms", "1777", "--tmpfs", mount.target)
        else:
            yield from ("--ro-bind" if mount.read_only else "--bind", mount.source, mount.target)


def _place(root: Path, target: str) -> str:
    """``target`` with the image's symbolic links resolved inside the image."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return linux.real_path_in_root(fd, target) or target
    finally:
        os.close(fd)


def working_directory(spec: ContainerSpec, root: Path) -> str:
    """The working directory, made if the image lacks it."""
    path = spec.workdir or "/"
    mounted = [*spec.tmpfs, *(bind.target for bind in spec.binds)]
    if any(path == target or path.startswith(target.rstrip("/") + "/") for target in mounted):
        return path
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if linux.real_path_in_root(fd, path) is None:
            _make_directories(fd, path)
    except OSError as error:
        raise ContainerStartError(f"the working directory {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    return path


def _make_directories(root: int, path: str) -> None:
    done = ""
    for name in path.strip("/").split("/"):
        parent = linux.open_in_root(root, done or "/", os.O_PATH | os.O_DIRECTORY)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=parent)
        finally:
            os.close(parent)
        done = f"{done}/{name}"
