"""Starting the processes through which the node reaches files of containers (``files_worker.py``)."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Final

import homeport.node.runtime.files_worker as worker
from homeport.node.runtime import linux
from homeport.node.runtime.enter import Place
from homeport.node.runtime.port import ContainerEndedError, ExecError
from homeport.node.runtime.seccomp import compiled_file_filter

_CONTROL_FD: Final = 4


class FileTemplate:
    """The template process, started at first use and again if it has ended.

    ``serve`` may be called from any thread. Workers and template end by themselves when their
    sockets are closed, so also with the node.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._pid = 0
        self._filter = linux.sealed_memory_file("homeport-file-filter", compiled_file_filter())

    def serve(self, place: Place, channel: int) -> None:
        """Have a worker in ``place`` answer on the socket ``channel``. Raises ``ExecError``."""
        with contextlib.ExitStack() as stack:
            fds = [channel, place.init_fd, self._filter]
            unified = [place.unified / "cgroup.procs"] if place.unified is not None else []
            for group in (*place.groups, *unified):
                try:
                    fds.append(os.open(group, os.O_WRONLY | os.O_CLOEXEC))
                except OSError as error:
                    raise ContainerEndedError() from error
                stack.callback(os.close, fds[-1])
            where = {
                "namespaces": place.namespaces & ~linux.CLONE_NEWPID,
                "capabilities": place.capabilities,
                "uid": place.user.uid,
                "gid": place.user.gid,
                "groups": list(place.user.groups),
                "root": place.root,
            }
            self._send(json.dumps(where).encode(), fds)

    def close(self) -> None:
        """End it. Idempotent."""
        with self._lock:
            self._drop()
            if self._filter >= 0:
                os.close(self._filter)
                self._filter = -1

    def _send(self, text: bytes, fds: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        with self._lock:
            for is_last in (False, True):
                if self._control is None:
                    self._start()
                assert self._control is not None
                try:
                    self._control.sendmsg([text], rights)
                    return
                except OSError as error:
                    self._drop()
                    if is_last:
                        raise ExecError(f"the container's files: {error}") from error

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            high = os.dup(theirs.fileno())
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, high, _CONTROL_FD),
            ]
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-I", "-S", str(Path(worker.__file__)), str(_CONTROL_FD)],
                    {"LC_ALL": "C.UTF-8"},
                    file_actions=actions,
                    setsid=True,
                    setsigmask=(),
                )
            finally:
                os.close(high)
        self._control = ours

    def _drop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
