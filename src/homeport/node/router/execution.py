"""One program run in a container on a client's demand: its streams and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from homeport.node.router.output import Output
from homeport.node.router.pump import output_pipe, pump
from homeport.node.router.stdin import Stdin
from homeport.node.runtime.port import Container, ExecSpec, Process

STRAGGLERS_S: Final = 2.0
"""How long after a program's end its output may go on: what it left in the background has its
pipes open, and whoever reads them would wait for that."""
ENDING_S: Final = 1.0
READER_S: Final = 0.005
"""Who wants to know a program's end and its output asks for both at once; which comes first is chance."""
READ_UP_S: Final = 1.0
"""So long at most the end is told later because somebody is still reading what was printed …"""
READ_TO_END_S: Final = 0.1
"""… and so long because what the program left in the background may print more."""
LATE_S: Final = 0.25
"""The end of a program that was killed for its timeout is told so much later: clients have a
deadline of their own, and report it as their own if theirs comes first."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. ``timeout_s`` 0 = as long as it takes."""

    words: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict[str, str])
    workdir: str = ""
    timeout_s: float = 0.0
    terminal: tuple[int, int] | None = None
    keep_stdout: bool = True
    keep_stderr: bool = True
    merge_stderr: bool = False
    """Standard error goes where standard output goes."""


class Execution:
    """A program from its start to its end, and what it printed for as long as that is kept."""

    def __init__(self, execution_id: str, folder: Path) -> None:
        self.execution_id = execution_id
        self.stdout = Output(folder)
        self.stderr = Output(folder)
        self.stdin = Stdin(-1)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._kill: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timed_out = False
        self._size = 0
        self._work: set[asyncio.Task[None]] = set()

    @property
    def size(self) -> int:
        """Bytes it printed before it ended."""
        return self._size

    @property
    def returncode(self) -> int | None:
        """Negative for a signal; ``None`` while it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Until it has ended; its return code."""
        return await asyncio.shield(self._ended)

    async def wait_read(self) -> int:
        """Until it has ended and those who read its output have it, within limits; its return code.

        Some clients print what a program prints until they know of its end (``modal container
        exec``).
        """
        asked = self._loop.time()
        code = await self.wait()
        outputs = (self.stdout, self.stderr)
        is_untaken = any(output.is_untaken for output in outputs)
        if is_untaken and not any(output.is_read for output in outputs):
            await asyncio.sleep(max(0.0, asked + READER_S - self._loop.time()))
        for to_end, limit_s in ((True, READ_TO_END_S), (False, READ_UP_S)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    for output in outputs:
                        await output.read_up(to_end=to_end)
                    break
        return code

    async def about_to_end(self) -> None:
        """It closed its input: if that is because it ended, until that is known.

        Clients look at its end when a write has failed.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDING_S):
                await self.wait()

    def on_end(self, call: Callable[[], None]) -> None:
        """Have ``call`` called when it has ended."""
        self._ended.add_done_callback(lambda _: call())

    def kill(self) -> None:
        """SIGKILL it."""
        if self._kill is not None and not self._ended.done():
            self._kill()

    def close(self) -> None:
        """Nobody can ask any more: free what it printed."""
        self.stdout.close()
        self.stderr.close()

    async def start(
        self, container: Container, command: Command, active: AbstractContextManager[None]
    ) -> None:
        """Start ``command``; ``active`` is held until it has ended. Raises ``ExecError``."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(active)
            if command.terminal:
                process = await container.exec(_spec(command))
                self._serve_terminal(process)
            else:
                process = await self._start_with_pipes(container, command)
            self.begin(process.wait, process.kill, command.timeout_s, stack.pop_all())

    async def _start_with_pipes(self, container: Container, command: Command) -> Process:
        ours: list[int] = []
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as undo:

            def pipe(output: Output, wanted: bool) -> int:
                if not wanted:
                    output.end()
                    return -1
                read, write = output_pipe()
                theirs.callback(os.close, write)
                undo.callback(os.close, read)
                ours.append(read)
                outputs.append(output)
                return write

            outputs: list[Output] = []
            stdin_read, stdin_write = os.pipe()
            theirs.callback(os.close, stdin_read)
            undo.callback(os.close, stdin_write)
            stdout = pipe(self.stdout, command.keep_stdout)
            if command.merge_stderr:
                self.stderr.end()
                stderr = stdout
            else:
                stderr = pipe(self.stderr, command.keep_stderr)
            spec = _spec(command, stdin_read, stdout, stderr)
            process = await container.exec(spec)
            undo.pop_all()
        self.stdin = Stdin(stdin_write)
        self.pump(zip(ours, outputs, strict=True))
        return process

    def _serve_terminal(self, process: Process) -> None:
        master = process.terminal_fd
        self.stderr.end()
        self.stdin = Stdin(os.dup(master), terminal=True)
        os.set_blocking(master, False)
        self.pump([(master, self.stdout)])

    def pump(self, pairs: Iterable[tuple[int, Output]]) -> None:
        """Read each descriptor, which is taken over, into its output."""
        for fd, output in pairs:
            self._spawn(pump(fd, output))

    def begin(
        self,
        wait: Callable[[], Awaitable[int]],
        kill: Callable[[], None],
        timeout_s: float,
        held: contextlib.ExitStack,
    ) -> None:
        """It runs: watch it with ``wait``; close ``held`` when it has ended."""
        self._kill = kill
        if timeout_s > 0:
            self._timer = self._loop.call_later(timeout_s, self._on_timeout)
        self._spawn(self._watch(wait, held))

    async def _watch(self, wait: Callable[[], Awaitable[int]], held: contextlib.ExitStack) -> None:
        with held:
            code = await wait()
        if self._timer is not None:
            self._timer.cancel()
        self.stdin.close()
        self._loop.call_later(STRAGGLERS_S, self._end_outputs)
        if self._timed_out:
            await asyncio.sleep(LATE_S)
        self._size = self.stdout.size + self.stderr.size
        self._ended.set_result(code)

    def _on_timeout(self) -> None:
        self._timed_out = True
        self.kill()

    def _end_outputs(self) -> None:
        self.stdout.end()
        self.stderr.end()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)


def _spec(command: Command, stdin: int = -1, stdout: int = -1, stderr: int = -1) -> ExecSpec:
    return ExecSpec(
        command=command.words,
        env=command.env,
        workdir=command.workdir,
        stdin_fd=stdin,
        stdout_fd=stdout,
        stderr_fd=stderr,
        terminal=command.terminal,
    )
