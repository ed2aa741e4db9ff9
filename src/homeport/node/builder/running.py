"""Running one command of a build in a container, its output as log entries."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from homeport.link.messages import LogEntry
from homeport.node.builder.flights import Emit
from homeport.node.runtime.port import Container, ContainerSpec, Exit, Runtime

STDOUT, STDERR, SYSTEM = 1, 2, 3
_TAIL_LINES = 20
"""Lines of output repeated in the error of a failed command."""
_TAIL_LINE_CHARACTERS = 500


def entry(text: str, fd: int = SYSTEM) -> LogEntry:
    """A log entry of now."""
    return LogEntry(fd, time.time_ns(), text)


class OutputTail:
    """Passes output on and remembers its last lines."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._rest = ""

    def __call__(self, fd: int, text: str) -> None:
        self._emit([entry(text, fd)])
        *lines, self._rest = (self._rest + text).split("\n")
        self._lines.extend(line[:_TAIL_LINE_CHARACTERS] for line in lines)
        self._rest = self._rest[-_TAIL_LINE_CHARACTERS:]

    def text(self) -> str:
        """The last lines, oldest first."""
        return "\n".join([*self._lines, *([self._rest] if self._rest else [])]).strip()


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended and what it said last."""

    exit: Exit
    tail: str


async def run_in_container(
    runtime: Runtime, spec: ContainerSpec, emit: Emit, *, keep_upper: bool
) -> Finished:
    """Run ``spec`` to its end; its upper directory is kept only if that was a success.

    The container is removed whatever happens, also on cancellation. Raises what ``start`` raises.
    """
    tail = OutputTail(emit)
    async with (
        _Pipe(lambda text: tail(STDOUT, text)) as out,
        _Pipe(lambda text: tail(STDERR, text)) as err,
    ):
        container = await runtime.start(
            replace(spec, stdout_fd=out.write_fd, stderr_fd=err.write_fd)
        )
        keep = False
        try:
            out.close_write()
            err.close_write()
            exit = await container.wait()
            keep = keep_upper and exit.returncode == 0
            await asyncio.gather(out.drained(), err.drained())
        finally:
            await _remove(container, keep)
    return Finished(exit, tail.text())


async def _remove(container: Container, keep_upper: bool) -> None:
    removal = asyncio.ensure_future(container.remove(keep_upper=keep_upper))
    try:
        await asyncio.shield(removal)
    except asyncio.CancelledError:
        await removal
        raise


class _Pipe(asyncio.Protocol):
    """A pipe whose read end feeds text to ``sink``; ``write_fd`` is for a child."""

    def __init__(self, sink: Callable[[str], None]) -> None:
        self._sink = sink
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._closed = asyncio.Event()
        self._transport: asyncio.BaseTransport | None = None
        self.write_fd = -1

    async def __aenter__(self) -> _Pipe:
        read_fd, self.write_fd = os.pipe()
        reader = os.fdopen(read_fd, "rb", buffering=0)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: self, reader
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close_write()
        if self._transport is not None:
            self._transport.close()

    def close_write(self) -> None:
        """Close our copy of the write end, so that the reader sees the end of the writers."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    async def drained(self) -> None:
        """Until all that was written has been read."""
        await self._closed.wait()

    def data_received(self, data: bytes) -> None:
        text = self._decoder.decode(data)
        if text:
            self._sink(text)

    def eof_received(self) -> None:
        with contextlib.suppress(UnicodeDecodeError):
            text = self._decoder.decode(b"", final=True)
            if text:
                self._sink(text)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
