"""The node's side of the conversation with a container's keeper (``init/keeper.c``).

What the keeper says is the word of a container: nothing in an answer is believed but what it means
for that container itself.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import signal
import socket
import struct
import termios
import tty
from collections import deque
from collections.abc import Sequence
from typing import Final

from homeport.node.runtime.enter import refusal
from homeport.node.runtime.port import ContainerEndedError, ExecError, ExecSpec

_PACKET_MAX: Final = 1 << 20
_TEXTS_MAX: Final = 30_000
_SEND_BUFFER: Final = 4 << 20
_SO_SNDBUFFORCE: Final = 32
_TIMEOUT_S: Final = 60.0
_ANSWER_MAX: Final = 16
_HEAD: Final = 5
"""A letter and an id of four bytes."""


class KeptProcess:
    """Implements ``port.Process`` for a process that its container's keeper has started."""

    def __init__(self, keeper: Keeper, number: int, pid: int, terminal_fd: int) -> None:
        self.pid = pid
        self.terminal_fd = terminal_fd
        self._keeper = keeper
        self._number = number
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        if not self.ended.done():
            self._keeper.send("k", self._number, int(signal.SIGKILL))


class Keeper:
    """Requests to the keeper of one container, by its control socket, which is taken over.

    ``pid`` is what its processes are called outside. All its processes have ended when the
    socket ends.
    """

    def __init__(self, control: socket.socket, pid: int) -> None:
        self._control = control
        self._pid = pid
        self._loop = asyncio.get_running_loop()
        self._next = 1
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._starting: dict[int, tuple[asyncio.Future[None], KeptProcess, ExecSpec, str]] = {}
        self._running: dict[int, KeptProcess] = {}
        self._connecting: dict[int, asyncio.Future[int]] = {}
        self._parting: asyncio.Future[int] | None = None
        self._gone = asyncio.Event()
        self._is_over = False
        self.returncode = -signal.SIGKILL
        """The command's; as it is here if the keeper did not get to say it."""
        control.setblocking(False)
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        control.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        self._loop.add_reader(control, self._on_answer)

    async def exec(self, spec: ExecSpec, env: dict[str, str], workdir: str) -> KeptProcess:
        """Start one more process. Raises ``ExecError``."""
        if not spec.command:
            raise ExecError("there is no command to execute")
        words = [*spec.command, *(f"{name}={value}" for name, value in env.items())]
        if any("\0" in word for word in (*words, workdir)):
            raise ExecError("the command cannot be executed: embedded null byte")
        terminal = f"{spec.terminal[0]},{spec.terminal[1]}" if spec.terminal else ""
        ours: socket.socket | None = None
        fds: list[int] = []
        try:
            if spec.terminal:
                ours, theirs = socket.socketpair()
                fds.append(theirs.detach())
            else:
                for fd in (spec.stdin_fd, spec.stdout_fd, spec.stderr_fd):
                    fds.append(os.dup(fd) if fd >= 0 else os.open(os.devnull, os.O_RDWR))
            number = self._number()
            process = KeptProcess(self, number, self._pid, ours.detach() if ours else -1)
        except BaseException:
            _close(fds)
            raise
        started: asyncio.Future[None] = self._loop.create_future()
        self._starting[number] = (started, process, spec, workdir)
        texts = ("x", number, terminal, workdir, len(spec.command), *words)
        if len(texts) > _TEXTS_MAX or not self.send(*texts, fds=fds):
            self._starting.pop(number, None)
            _close([process.terminal_fd] if process.terminal_fd >= 0 else [])
            if self._is_over:
                raise ContainerEndedError()
            raise ExecError(f"{spec.command[0]}: {os.strerror(errno.E2BIG)}", errno.E2BIG)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await asyncio.shield(started)
        except (asyncio.CancelledError, TimeoutError) as error:
            started.add_done_callback(lambda ended: _undo(process, ended))
            if isinstance(error, TimeoutError):  # a program may have stopped it
                raise ExecError("the container's first process does not answer") from error
            raise
        return process

    async def connect(self, port: int) -> socket.socket:
        """A connection to a TCP port inside. Raises ``OSError``."""
        ours, theirs = socket.socketpair()
        number = self._number()
        answer: asyncio.Future[int] = self._loop.create_future()
        self._connecting[number] = answer
        if not self.send("c", number, port, fds=[theirs.detach()]):
            del self._connecting[number]
            ours.close()
            raise ConnectionResetError(errno.ECONNRESET, "the container has ended")
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                error = await answer
        except BaseException:
            ours.close()
            raise
        if error:
            ours.close()
            raise OSError(error, os.strerror(error))
        ours.setblocking(False)
        return ours

    async def let_go(self) -> None:
        """Have the container let go of all that is the host's, for a checkpoint of it.

        The conversation is over then; programs go on, but are as ended here. Raises ``OSError``
        if it cannot, and goes on as it was; ``ContainerEndedError``.
        """
        self._parting = self._loop.create_future()
        if not self.send("p", self._number()):
            raise ContainerEndedError()
        async with asyncio.timeout(_TIMEOUT_S):
            error = await self._parting
            if error:
                raise OSError(error, os.strerror(error))
            await self._gone.wait()

    def send(self, kind: str, *texts: str | int, fds: Sequence[int] = ()) -> bool:
        """Send a request; ``fds`` are closed. False if it is too long, or the keeper gone."""
        packet = kind.encode() + b"".join(os.fsencode(str(text)) + b"\0" for text in texts)
        if self._is_over or len(packet) > _PACKET_MAX:
            _close(fds)
            return False
        self._waiting.append((packet, list(fds)))
        if len(self._waiting) == 1:
            self._send_waiting()
        return True

    def close(self) -> None:
        """Nothing runs any more; what has been said of it is heard. Idempotent."""
        self._on_answer()
        self._give_up()

    def _give_up(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._gone.set()
        if self._parting is not None and not self._parting.done():
            self._parting.set_exception(ContainerEndedError())
        self._loop.remove_reader(self._control)
        self._loop.remove_writer(self._control)
        self._control.close()
        for _, fds in self._waiting:
            _close(fds)
        self._waiting.clear()
        for started, process, _, _ in self._starting.values():
            if process.terminal_fd >= 0:
                os.close(process.terminal_fd)
            if not started.done():
                started.set_exception(ContainerEndedError())
        for process in self._running.values():
            process.ended.set_result(-signal.SIGKILL)
        for answer in self._connecting.values():
            if not answer.done():
                answer.set_result(errno.ECONNRESET)
        for known in (self._starting, self._running, self._connecting):
            known.clear()

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _send_waiting(self) -> None:
        while self._waiting:
            packet, fds = self._waiting[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                self._control.sendmsg([packet], rights)
            except BlockingIOError:
                self._loop.add_writer(self._control, self._send_waiting)
                return
            except OSError:
                return  # its end is told by the reader
            self._waiting.popleft()
            _close(fds)
        self._loop.remove_writer(self._control)

    def _on_answer(self) -> None:
        while not self._is_over:
            try:
                data = self._control.recv(_ANSWER_MAX)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                return self._give_up()
            if len(data) >= _HEAD:
                number = int.from_bytes(data[1:_HEAD], "little")
                self._heed(data[:1], number, data[_HEAD:])

    def _heed(self, kind: bytes, number: int, more: bytes) -> None:
        if kind == b"s" and number in self._starting:
            started, process, _, _ = self._starting.pop(number)
            self._running[number] = process
            started.set_result(None)
        elif kind == b"e" and number in self._starting and len(more) >= 2:
            started, process, spec, workdir = self._starting.pop(number)
            if process.terminal_fd >= 0:
                os.close(process.terminal_fd)
            started.set_exception(refusal(more[0], chr(more[1]), spec, workdir))
        elif kind == b"x" and number in self._running and len(more) >= 4:
            self._running.pop(number).ended.set_result(_code(int.from_bytes(more[:4], "little")))
        elif kind == b"z" and len(more) >= 4:
            self.returncode = _code(int.from_bytes(more[:4], "little"))
        elif kind == b"p" and self._parting is not None and more:
            if not self._parting.done():
                self._parting.set_result(more[0])
        elif kind == b"c" and number in self._connecting and more:
            answer = self._connecting.pop(number)
            if not answer.done():
                answer.set_result(more[0])


def terminal_size(fd: int) -> str:
    """The size of the terminal that the command is given, empty for none.

    It gets one of the container's own; the host's only carries the bytes from now on.
    """
    if fd < 0 or not os.isatty(fd):
        return ""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    tty.setraw(fd, termios.TCSANOW)  # what has been typed already stays
    return f"{rows},{columns}"


def _code(status: int) -> int:
    try:
        return os.waitstatus_to_exitcode(status)
    except ValueError:  # not a status
        return -signal.SIGKILL


def _undo(process: KeptProcess, started: asyncio.Future[None]) -> None:
    """End what was started for one who did not wait for it."""
    if not started.cancelled() and started.exception() is None:
        process.kill()
        if process.terminal_fd >= 0:
            os.close(process.terminal_fd)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
