"""The node's side of the conversation with a container's init (``init/init.c``)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from homeport.node.runtime import linux
from homeport.node.runtime.port import ContainerStartError, RuntimeUnavailableError

_TIMEOUT_S: Final = 60.0
_CREDENTIALS: Final = struct.Struct("=iII")


@dataclass(frozen=True, slots=True)
class Started:
    """A container whose command runs. Descriptors are pidfds, to be closed by the owner."""

    init_pid: int
    init_fd: int
    command_pid: int
    command_fd: int


class CommandError(ContainerStartError):
    """The sandbox is complete, but the command cannot be executed in it."""


@cache
def program(name: str) -> bytes:
    """One of our static programs (``init`` or ``keeper``, which become PID 1; ``enter``).

    Raises ``RuntimeUnavailableError``.
    """
    machine = os.uname().machine
    path = Path(__file__).parent / "init" / f"{name}-{machine}"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RuntimeUnavailableError(
            f"Homeport has no container {name} for the architecture {machine}; "
            "build it with homeport/node/runtime/init/build.sh"
        ) from None


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Our end, which learns the sender's pid with each message, and init's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.settimeout(_TIMEOUT_S)
    return ours, theirs


def converse(control: socket.socket, attach: Callable[[int], None], command: str) -> Started:
    """Lead init to the running command; blocks for a few milliseconds.

    ``attach`` is called with init's pid before anything else of the container exists. Raises
    ``ContainerStartError`` if the tool ended before init, ``CommandError`` if the command cannot
    be executed.
    """
    init_pid, init_fd = greet(control, attach)
    return proceed(control, init_pid, init_fd, lambda: control.send(b"+"), command)


def greet(control: socket.socket, attach: Callable[[int], None]) -> tuple[int, int]:
    """The first half of ``converse``: init's pid and a pidfd of it, which is the caller's."""
    word, init_pid = _receive(control)
    if word != b"I":
        raise ContainerStartError("")
    init_fd = -1
    try:
        init_fd = os.pidfd_open(init_pid)
        attach(init_pid)
    except BaseException as error:
        _end(init_fd)
        if isinstance(error, OSError):
            raise ContainerStartError(f"the container's init: {error}") from error
        raise
    return init_pid, init_fd


def proceed(
    control: socket.socket, init_pid: int, init_fd: int, go: Callable[[], object], command: str
) -> Started:
    """The second half: ``go`` tells init to start the command. ``init_fd`` is taken over."""
    fds = [init_fd]
    try:
        go()
        word, command_pid = _receive(control)
        if word != b"S":
            raise _refusal(word, command)
        fds.append(os.pidfd_open(command_pid))
        control.send(b"+")
        word, _ = _receive(control)
        if word != b"R":
            raise _refusal(word, command)
    except BaseException as error:
        for fd in fds:
            _end(fd)
        if isinstance(error, OSError):
            raise ContainerStartError(f"the container's init: {error}") from error
        raise
    return Started(init_pid, init_fd, command_pid, fds[1])


def _end(pid_fd: int) -> None:
    if pid_fd < 0:
        return
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
    os.close(pid_fd)


def _refusal(word: bytes, command: str) -> ContainerStartError:
    if len(word) == 2 and word[:1] == b"E":
        return CommandError(f"{command}: {os.strerror(word[1])}")
    if len(word) == 2 and word[:1] == b"F":
        return ContainerStartError(f"the container's init: {os.strerror(word[1])}")
    return ContainerStartError("the container's init ended unexpectedly")


def _receive(control: socket.socket) -> tuple[bytes, int]:
    data, ancillary, _, _ = control.recvmsg(16, socket.CMSG_SPACE(_CREDENTIALS.size))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and data:
            return data, _CREDENTIALS.unpack_from(payload)[0]
    return data, 0


def write_init(name: str = "init") -> int:
    """A descriptor of a sealed file with init's program."""
    return linux.sealed_memory_file(f"homeport-{name}", program(name))
