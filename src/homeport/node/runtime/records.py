"""What a runtime writes down about a container before it starts, to undo it after a crash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from homeport.kernel.decoding import UNREADABLE

INIT_PREFIX: Final = "homeport-init:"
OUTER_PREFIX: Final = "homeport-container:"
NETWORK_TAG: Final = "network-tag"
"""A file in a run directory, with the name that its node gives to what is on the machine."""
_FILE: Final = "container.json"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One container: what to remove."""

    id: str
    upper: str
    work: str
    cgroup: str
    interface: str = ""


class ContainerDirectory:
    """``<run_dir>/containers/<id>``: the record and the status file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def status_file(self) -> Path:
        """Where init leaves the command's wait status."""
        return self.path / "status"

    def create(self, record: Record) -> None:
        """Raises ``FileExistsError`` if the id is in use."""
        self.path.mkdir(mode=0o700)
        draft = self.path / f".{_FILE}"
        draft.write_bytes(msgspec.json.encode(record))
        draft.rename(self.path / _FILE)

    def record(self) -> Record | None:
        """What was written; ``None`` if the crash came before."""
        try:
            return msgspec.json.decode((self.path / _FILE).read_bytes(), type=Record)
        except (OSError, *UNREADABLE):
            return None

    def remove(self) -> None:
        """Delete it."""
        remove_tree(self.path)


def remove_tree(path: Path) -> None:
    """Delete a directory tree, also one with directories its owner may not enter."""

    def unlock(function: Callable[..., Any], name: str, _: Any) -> None:
        parent = os.path.dirname(name)
        for directory in (parent, name):
            with contextlib.suppress(OSError):
                if stat.S_ISDIR(os.lstat(directory).st_mode):
                    os.chmod(directory, 0o700)
        with contextlib.suppress(OSError):
            function(name)

    for _ in range(3):
        if not os.path.lexists(path):
            return
        shutil.rmtree(path, onerror=unlock)


def run_token(run_dir: Path) -> str:
    """What tells containers of one runtime's ``run_dir`` apart from others of the machine."""
    return hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:12]


def init_name(token: str, container_id: str) -> str:
    """``argv[0]`` of a container's init: how its processes are found after a crash."""
    return f"{INIT_PREFIX}{token}:{container_id}"


def outer_name(token: str, container_id: str) -> str:
    """``argv[0]`` of the tool's process outside the container."""
    return f"{OUTER_PREFIX}{token}:{container_id}"


def find_processes(*prefixes: str) -> dict[int, str]:
    """Pids on this machine whose ``argv[0]`` begins with one of ``prefixes``."""
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                name = file.read(512).split(b"\0", 1)[0].decode(errors="replace")
        except OSError:
            continue
        if name.startswith(prefixes):
            found[int(entry)] = name
    return found
