"""The file tool: a program that clients execute by its path, and that the node is itself."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import structlog

from homeport.node.router.execution import Command, Execution
from homeport.node.router.pump import output_pipe
from homeport.node.router.stdin import Stdin
from homeport.node.runtime.port import Container, ExecError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PATH: Final = "/__modal/.bin/modal-sandbox-fs-tools"
COMMAND_BYTES_MAX: Final = 128 * 1024
IDLE_S: Final = 30.0
"""A worker that has nothing to do for so long ends; the next one takes a few milliseconds."""


class FileTools:
    """Runs file commands in containers, through one worker process a container."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}

    async def start(
        self,
        execution: Execution,
        container: Container,
        command: Command,
        active: AbstractContextManager[None],
    ) -> None:
        """Begin a command as if it was a program; see ``Executions``. Raises ``ExecError``."""
        if len(command.words) != 2:
            raise ExecError(f"{PATH} takes one argument")
        try:
            request: Any = json.loads(command.words[1])
        except ValueError as error:
            raise ExecError(f"{PATH} takes JSON: {error}") from None
        if len(command.words[1]) > COMMAND_BYTES_MAX:
            raise ExecError(f"the command is over the limit of {COMMAND_BYTES_MAX} bytes")
        with contextlib.ExitStack() as stack:
            stack.enter_context(active)
            await self._begin(execution, container, command, request, stack)

    async def _begin(
        self,
        execution: Execution,
        container: Container,
        command: Command,
        request: Any,
        held: contextlib.ExitStack,
    ) -> None:
        worker = await self.worker(container)
        stdin_read, stdin_write = os.pipe()
        stdout_read, stdout_write = output_pipe()
        stderr_read, stderr_write = output_pipe()
        try:
            done = worker.send(request, [stdin_read, stdout_write, stderr_write])
        except OSError as error:
            for fd in (stdin_write, stdout_read, stderr_read):
                os.close(fd)
            raise ExecError(f"the container's files cannot be reached: {error}") from error
        finally:
            for fd in (stdin_read, stdout_write, stderr_write):
                os.close(fd)
        execution.stdin = Stdin(stdin_write)
        execution.stdout.has_lines = "Watch" in request  # else it is a file, or one line
        execution.pump([(stdout_read, execution.stdout), (stderr_read, execution.stderr)])

        async def wait() -> int:
            code = await asyncio.shield(done)
            if "HandleOpen" in request and code == 0:
                worker.kept += 1
            elif "HandleClose" in request and code == 0:
                worker.kept -= 1
            return code

        def kill() -> None:
            # A thread cannot be killed: its pipes break, and it is as good as gone.
            if not done.done():
                done.set_result(-signal.SIGKILL)
            execution.stdin.close()

        execution.begin(wait, kill, command.timeout_s, held.pop_all())

    async def worker(self, container: Container) -> _Worker:
        """The container's worker, started if need be. Raises ``ExecError``."""
        worker = self._workers.get(container.id)
        if worker is None or worker.is_over:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            worker = _Worker(ours, lambda: self._forget(container.id, ours))
            self._workers[container.id] = worker
            with theirs:
                await container.serve_files(theirs)
        return worker

    def _forget(self, container_id: str, channel: socket.socket) -> None:
        worker = self._workers.get(container_id)
        if worker is not None and worker.channel is channel:
            del self._workers[container_id]

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._workers.values()):
            worker.close()


class _Worker:
    """The node's end of one worker's socket."""

    def __init__(self, channel: socket.socket, on_over: Callable[[], None]) -> None:
        self.channel = channel
        self.is_over = False
        self.kept = 0
        """Open files that live in it: it may not end."""
        self._on_over = on_over
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, asyncio.Future[int]] = {}
        self._next = 0
        self._idle: asyncio.TimerHandle | None = None
        channel.setblocking(False)
        self._loop.add_reader(channel.fileno(), self._on_answer)
        self._arm()

    def send(self, command: Any, fds: list[int]) -> asyncio.Future[int]:
        """Have a command run; its exit code. Raises ``OSError``."""
        self._next += 1
        text = json.dumps({"id": self._next, "command": command}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self.channel.sendmsg([text], rights)
        done: asyncio.Future[int] = self._loop.create_future()
        self._pending[self._next] = done
        self._arm()
        return done

    def close(self) -> None:
        """End it; what runs in it is killed."""
        if self.is_over:
            return
        self.is_over = True
        self._loop.remove_reader(self.channel.fileno())
        self.channel.close()
        if self._idle is not None:
            self._idle.cancel()
        for done in self._pending.values():
            if not done.done():
                done.set_result(-signal.SIGKILL)
        self._pending.clear()
        self._on_over()

    def _on_answer(self) -> None:
        try:
            text = self.channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            text = b""
        if not text:
            return self.close()
        answer: Any = json.loads(text)
        done = self._pending.pop(answer["id"], None)
        if done is not None and not done.done():
            done.set_result(answer["code"])
        self._arm()

    def _arm(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if not self._pending and not self.kept:
            self._idle = self._loop.call_later(IDLE_S, self.close)
