"""The program ``runsc``: what it is called with about a container, and what it says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from homeport.node.runtime.port import ContainerStartError, RuntimeUnavailableError
from homeport.node.runtime.stage import Stage

_OLDEST: Final = 20240101
"""Release date from which on it can pass descriptors and executes programs from them."""
_KNOWS_LINUX_6_11: Final = 20240901
"""Older ones take every network namespace of a newer kernel for the host's."""
_GOFER: Final = b"runsc-gofer"
_DELETED: Final = re.compile(r'gofer\.dentry\("([^"]*)"\)\.beforeSave: deleted')
_RESTORE_S: Final = 300.0
_LOOK_S: Final = 0.003
INSTALL: Final = (
    "install gVisor (runsc), a release of 2024 or newer: gvisor.dev/docs/user_guide/install, or "
    "Debian's package (on Debian 12 from backports: apt-get install -t bookworm-backports runsc)"
)
"""What to do without one that works."""


class Runsc:
    """The program of this machine; ``state`` is a directory for what it keeps about containers."""

    def __init__(self, state: Path) -> None:
        path = shutil.which("runsc")
        if path is None:
            raise RuntimeUnavailableError(f"there is no runsc program; {INSTALL}")
        self.path = path
        self._hides_settings = _needs_hidden_settings(_release(path))
        self._state = state

    def name(self, container_id: str) -> str:
        """What it calls a container; part of the path of a socket, which has to be short."""
        return hashlib.sha256(container_id.encode()).hexdigest()[:12]

    def state(self, container_id: str) -> Path:
        """What it keeps about a container: a directory that nobody else uses."""
        return self._state / self.name(container_id)

    def words(self, container_id: str, network: str) -> list[str]:
        """How to call it about a container; a command and the container's name follow."""
        mode = "host" if network == "host" else "sandbox"
        return [
            *(self.path, "--root", str(self.state(container_id))),
            *(f"--network={mode}", "--ignore-cgroups"),
            *("--overlay2=none", "--file-access=shared", "--dcache=0"),
            "--net-disconnect-ok",  # connections end with a checkpoint, instead of refusing it
        ]

    def view(self, stage: Stage) -> AbstractContextManager[None]:
        """What it has to be started in, of a thread of ``stage``."""
        if self._hides_settings:
            return stage.without_network_settings()
        return contextlib.nullcontext()

    def until_running(self, container_id: str, pid: int) -> None:
        """Block until its process ``pid`` has restored a container."""
        name = self.name(container_id)
        _until_running(self.state(container_id) / f"{name}_sandbox:{name}.state", pid)

    def clean(self, container_id: str) -> None:
        """Remove what it keeps about a container."""
        shutil.rmtree(self.state(container_id), ignore_errors=True)

    def clean_all(self, kept: set[str]) -> None:
        """Remove what it keeps about all containers but these."""
        names = {self.name(container_id) for container_id in kept}
        with contextlib.suppress(FileNotFoundError):
            for path in self._state.iterdir():
                if path.name not in names:
                    shutil.rmtree(path, ignore_errors=True)


def gofer(outer: int) -> int:
    """The process that holds a container's files: a child of the one that we started."""
    for thread in os.listdir(f"/proc/{outer}/task"):
        children = Path(f"/proc/{outer}/task/{thread}/children").read_text().split()
        for child in children:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if command.startswith(_GOFER):
                return int(child)
    raise ContainerStartError("runsc has no gofer process")


def _release(binary: str) -> int:
    """The date (YYYYMMDD) of a ``runsc``. Raises ``RuntimeUnavailableError`` for one too old."""
    try:
        said = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeUnavailableError(f"{binary} does not run: {error}; {INSTALL}") from error
    found = re.search(r"20\d{6}", said)
    date = int(found.group()) if found else _KNOWS_LINUX_6_11  # built from source: of today
    if date < _OLDEST:
        raise RuntimeUnavailableError(f"{binary} is of {date}, too old; {INSTALL}")
    return date


def _needs_hidden_settings(release: int) -> bool:
    return release < _KNOWS_LINUX_6_11 and os.path.exists("/proc/sys/net/core/rmem_default")


def _until_running(state: Path, pid: int) -> None:
    """Block until the tool's process ``pid`` has restored its container.

    The file is all it tells: it has no other sign that another program could wait for.
    """
    deadline = time.monotonic() + _RESTORE_S
    while True:
        try:
            status = json.loads(state.read_bytes()).get("status", "")
        except (OSError, ValueError):  # not there, or not whole
            status = ""
        if status == "running":
            return
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            raise ContainerStartError("")
        if time.monotonic() > deadline:
            raise ContainerStartError(f"it was not restored within {_RESTORE_S:g} s")
        time.sleep(_LOOK_S)


def logged(text: str) -> str:
    """What the tool's log says, a JSON object a line."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, AttributeError):
            return first_words(str(json.loads(line).get("msg", "")))
    return first_words(text)


def first_words(text: str) -> str:
    """A sentence of the tool's, without where in its program it was."""
    deleted = _DELETED.search(text)
    if deleted is not None:
        return f"a program has the file /{deleted.group(1)} open, which was deleted"
    return text.strip().partition("\ngoroutine ")[0].strip().rstrip(":")
