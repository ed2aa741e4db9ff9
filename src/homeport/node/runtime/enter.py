"""Starting further processes in a running container (``init/enter.c``)."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from homeport.node.runtime import linux
from homeport.node.runtime.handshake import program
from homeport.node.runtime.port import ContainerEndedError, ExecError, ExecSpec
from homeport.node.runtime.users import User

CONTROL_FD: Final = 4
_PROGRAM_FD: Final = 5
_PIDFD: Final = 6
_FILTER_FD: Final = 7
_FIRST_GROUP_FD: Final = 8
_HIGH_FD: Final = 64
_TIMEOUT_S: Final = 60.0
_CREDENTIALS: Final = struct.Struct("=iII")
_DEFAULT_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM)
_CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
_NAMESPACES: Final = {
    "mnt": linux.CLONE_NEWNS,
    "pid": linux.CLONE_NEWPID,
    "ipc": linux.CLONE_NEWIPC,
    "uts": linux.CLONE_NEWUTS,
    "net": linux.CLONE_NEWNET,
    "user": linux.CLONE_NEWUSER,
    "cgroup": linux.CLONE_NEWCGROUP,
}
_STEPS: Final = {
    "j": "joining the container",
    "t": "opening a terminal in the container",
    "r": "giving up rights",
}


@dataclass(frozen=True, slots=True)
class Place:
    """What is to be joined: looked up once a container, it does not change."""

    init_fd: int
    """A pidfd of the container's init, its owner's."""
    namespaces: int
    """``CLONE_NEW…`` flags of those that are not the node's own."""
    capabilities: int
    groups: tuple[Path, ...]
    """``tasks`` files of control groups of version 1."""
    unified: Path | None
    """The directory of the group of version 2."""
    user: User
    root: str = ""
    """Path to the container's root directory, where that is not its namespace's."""


def look_up(init_pid: int, init_fd: int, user: User) -> Place:
    """The place of a container by its init. Raises ``OSError`` if that has ended."""
    namespaces = 0
    for name, flag in _NAMESPACES.items():
        theirs = os.stat(f"/proc/{init_pid}/ns/{name}").st_ino
        if theirs != os.stat(f"/proc/self/ns/{name}").st_ino:
            namespaces |= flag
    groups, unified = _groups(init_pid)
    return Place(init_fd, namespaces, _capabilities(init_pid), tuple(groups), unified, user)


def _capabilities(pid: int) -> int:
    """What init may do at most: it bounded itself to what the tool left it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return int(line.split()[1], 16)
    raise OSError(f"/proc/{pid}/status has no CapBnd")


def _groups(pid: int) -> tuple[list[Path], Path | None]:
    own = set(Path("/proc/self/cgroup").read_text().splitlines())
    found: list[Path] = []
    unified: Path | None = None
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        if line in own:
            continue
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if controllers else ("unified", ""):
            folder = _CGROUP_ROOT / name.removeprefix("name=")
            group = folder / path.lstrip("/")
            if (folder / "cgroup.procs").exists() and group.is_dir():
                if controllers:
                    found.append(group / "tasks")
                else:
                    unified = group
                break
    return found, unified


@dataclass(frozen=True, slots=True)
class Entered:
    """A process that runs. ``terminal_fd`` is its terminal's master, -1 without one."""

    pid: int
    pid_fd: int
    terminal_fd: int


def enter(
    place: Place, program_fd: int, filter_fd: int, env: dict[str, str], workdir: str, spec: ExecSpec
) -> Entered:
    """Start ``spec`` there; blocks for a few milliseconds. Raises ``ExecError``."""
    if not spec.command:
        raise ExecError("there is no command to execute")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, contextlib.ExitStack() as stack:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.settimeout(_TIMEOUT_S)

        def keep(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        with theirs:
            launcher = _spawn(place, program_fd, filter_fd, env, workdir, spec, theirs, keep)
        try:
            return _converse(ours, spec, workdir)
        finally:
            os.waitpid(launcher, 0)


def _spawn(
    place: Place,
    program_fd: int,
    filter_fd: int,
    env: dict[str, str],
    workdir: str,
    spec: ExecSpec,
    control: socket.socket,
    keep: Callable[[int], int],
) -> int:
    null = keep(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    flags = os.O_WRONLY | os.O_CLOEXEC
    groups = [keep(os.open(path, flags)) for path in place.groups]
    numbers = range(_FIRST_GROUP_FD, _FIRST_GROUP_FD + len(groups))
    unified: dict[int, int] = {}
    if place.unified is not None:
        directory = os.open(place.unified, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        unified[_FIRST_GROUP_FD + len(groups)] = keep(directory)
    user = place.user
    terminal = f"{spec.terminal[0]},{spec.terminal[1]}" if spec.terminal else ""
    arguments = [
        *("enter", str(CONTROL_FD), str(_PIDFD), str(place.namespaces), str(place.capabilities)),
        *(str(user.uid), str(user.gid), ",".join(map(str, user.groups)), str(_FILTER_FD)),
        *(terminal, workdir, ",".join(map(str, numbers)), str(*unified) or "-"),
        *spec.command,
    ]
    wanted = {
        0: spec.stdin_fd if spec.stdin_fd >= 0 else null,
        1: spec.stdout_fd if spec.stdout_fd >= 0 else null,
        2: spec.stderr_fd if spec.stderr_fd >= 0 else null,
        CONTROL_FD: control.fileno(),
        _PROGRAM_FD: program_fd,
        _PIDFD: place.init_fd,
        # opened anew: it is read, and the reading position is shared with a duplicate
        _FILTER_FD: keep(os.open(f"/proc/self/fd/{filter_fd}", os.O_RDONLY | os.O_CLOEXEC)),
        **dict(zip(numbers, groups, strict=True)),
        **unified,
    }
    actions: list[tuple[int, int, int]] = []
    try:
        for target, source in wanted.items():
            high = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
            actions.append((os.POSIX_SPAWN_DUP2, high, target))
        return os.posix_spawn(
            f"/proc/self/fd/{_PROGRAM_FD}",
            arguments,
            env,
            file_actions=actions,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
    except (OSError, ValueError) as error:
        raise ExecError(f"the command cannot be executed: {error}") from error
    finally:
        for _, high, _ in actions:
            os.close(high)


def _converse(control: socket.socket, spec: ExecSpec, workdir: str) -> Entered:
    """Read what the launcher and the new process say until the latter is executed."""
    terminal_fd = pid_fd = -1
    pid = 0
    try:
        while True:
            word, sender, fds = _receive(control)
            if fds:
                terminal_fd = fds[0]
            if word == b"S":
                pid, pid_fd = sender, os.pidfd_open(sender)
            elif word[:1] == b"E":
                raise refusal(word[1], chr(word[2]), spec, workdir)
            elif not word:
                if pid_fd < 0:
                    raise ContainerEndedError()
                return Entered(pid, pid_fd, terminal_fd)
    except BaseException as error:
        if terminal_fd >= 0:
            os.close(terminal_fd)
        if pid_fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, pid_fd, os.WEXITED)
            os.close(pid_fd)
        if isinstance(error, OSError):
            raise ExecError(f"the command cannot be executed: {error}") from error
        raise


def refusal(number: int, step: str, spec: ExecSpec, workdir: str) -> ExecError:
    """What the launcher's errno and ``step`` mean."""
    reason = os.strerror(number)
    if step == "j" and number in (errno.ESRCH, errno.ENOMEM):  # no process, no PID namespace
        return ContainerEndedError()
    if step == "j" and number == errno.EAGAIN:
        return ExecError("the container is at its limit of processes", number)
    if step == "c":
        if not spec.command[0]:
            return ExecError("the command to execute is empty", number)
        return ExecError(f"{spec.command[0]}: {reason}", number)
    if step == "d":
        return ExecError(f"the working directory {workdir}: {reason}", number)
    return ExecError(f"{_STEPS.get(step, 'starting')}: {reason}", number)


def _receive(control: socket.socket) -> tuple[bytes, int, Sequence[int]]:
    room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4)
    data, ancillary, _, _ = control.recvmsg(16, room, socket.MSG_CMSG_CLOEXEC)
    sender = 0
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_CREDENTIALS:
            sender = _CREDENTIALS.unpack_from(payload)[0]
        elif kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, sender, fds


def enter_program() -> int:
    """A descriptor of a sealed file with the launcher."""
    return linux.sealed_memory_file("homeport-enter", program("enter"))


class EnteredProcess:
    """Implements ``port.Process``; its owner waits for it, then calls nothing more."""

    def __init__(self, entered: Entered) -> None:
        self._pid_fd = entered.pid_fd
        self.pid = entered.pid
        self.terminal_fd = entered.terminal_fd
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pid_fd, self._on_end)

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        if self._ended.done():
            return
        # The group is its own (setsid); as long as it is not reaped, its number is too.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pid_fd)
        code = -signal.SIGKILL
        with contextlib.suppress(ChildProcessError):
            ended = os.waitid(os.P_PIDFD, self._pid_fd, os.WEXITED)
            if ended is not None:
                code = ended.si_status
                if ended.si_code != os.CLD_EXITED:
                    code = -code
        os.close(self._pid_fd)
        self._ended.set_result(code)
