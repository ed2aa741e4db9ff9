"""What a container's root file system has besides the image: generated files and mount points.

Neither is written into the container's upper directory (image builds commit it): generated files
are the topmost read-only layer, missing mount points the lowest one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from homeport.node.runtime.port import Bind

_DIRECTORIES = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "var/tmp")
_STICKY = ("tmp", "var/tmp")
_GENERATED = ("hostname", "hosts", "resolv.conf")
"""In ``/etc``."""


def lay_out_generated(directory: Path) -> None:
    """Make the generated files under ``directory``, still empty."""
    etc = directory / "etc"
    etc.mkdir(parents=True)
    os.chmod(directory, 0o755)
    os.chmod(etc, 0o755)
    for name in _GENERATED:
        fd = os.open(etc / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.fchmod(fd, 0o644)
        os.close(fd)


def write_generated(
    directory: Path, hostname: str, address: str, nameservers: Sequence[str], search: str
) -> None:
    """Say in the files under ``directory`` what is known when the container starts.

    They may be a layer of a file system that is mounted, as long as nobody has looked into it:
    names and directories stay as they are.
    """
    hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    hosts += f"{address or '127.0.0.1'}\t{hostname}\n"
    resolver = "".join(f"nameserver {server}\n" for server in nameservers)
    if search:
        resolver = f"search {search}\n{resolver}"
    for name, text in zip(_GENERATED, (f"{hostname}\n", hosts, resolver), strict=True):
        fd = os.open(f"{directory}/etc/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def mount_points(store: Path, binds: Iterable[Bind], tmpfs: Iterable[str]) -> Path:
    """A layer with every directory and file that something is mounted on; shared by content.

    Raises ``FileNotFoundError`` if a bind's source does not exist.
    """
    wanted = sorted(
        {
            (_inside(bind.target), bind.source.stat().st_mode & 0o170000 == 0o040000)
            for bind in binds
        }
        | {(_inside(target), True) for target in tmpfs}
    )
    key = hashlib.sha256(repr(wanted).encode()).hexdigest()[:24]
    final = store / key
    if final.is_dir():
        return final
    draft = store / f".{key}.{os.getpid()}.{os.urandom(4).hex()}"
    for name in _DIRECTORIES:
        (draft / name).mkdir(parents=True, exist_ok=True)
    for target, is_directory in wanted:
        _create(draft / target, is_directory)
    for path in (draft, *draft.rglob("*")):  # whatever the umask is
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    for name in _STICKY:
        os.chmod(draft / name, 0o1777)
    os.chmod(draft / "root", 0o700)
    try:
        draft.rename(final)
    except OSError:  # somebody else was faster
        shutil.rmtree(draft, ignore_errors=True)
    return final


def _inside(target: str) -> str:
    """``target`` as a relative path that stays below the root."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"a mount target may not contain '..': {target}")
    return "/".join(parts)


def _create(path: Path, is_directory: bool) -> None:
    if path.exists():
        return
    if is_directory:
        path.mkdir(parents=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
