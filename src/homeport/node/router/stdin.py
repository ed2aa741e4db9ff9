"""A program's standard input, written by clients that repeat themselves."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from typing import Final

from homeport.kernel.errors import ConflictError, InvalidError

BUFFERED_BYTES_MAX: Final = 4 * 1024 * 1024
"""Accepted and not yet in the pipe; above that writers wait for the program to read."""
END_OF_TRANSMISSION: Final = b"\x04"


class Stdin:
    """Writes to ``fd``, which it owns (-1: there is no standard input).

    A write says at which offset it begins; what was accepted before is dropped, so that a write
    whose answer was lost can be repeated. A terminal's end is a character, not a close.
    """

    def __init__(self, fd: int, *, terminal: bool = False) -> None:
        self._fd = fd
        self._terminal = terminal
        self._loop = asyncio.get_running_loop()
        self._pending: deque[memoryview] = deque()
        self._buffered = 0
        self._eof = fd < 0
        self._broken = False
        self._waiting_for_pipe = False
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._writer: asyncio.Task[object] | None = None
        self.accepted = 0
        """Bytes taken over so far."""
        if fd >= 0:
            os.set_blocking(fd, False)

    @property
    def closed(self) -> bool:
        """Whether nothing more is accepted."""
        return self._eof or self._broken

    @property
    def broken(self) -> bool:
        """Whether the program ended or closed its input."""
        return self._broken

    async def write(self, offset: int, data: bytes, eof: bool) -> None:
        """Accept what is new of ``data``; waits while too much is buffered.

        Raises ``InvalidError`` for a gap and ``ConflictError`` if the input is closed.
        """
        if not data and eof:
            self.end()
            return
        async with self._turn:
            if offset > self.accepted:
                raise InvalidError(
                    f"standard input has {self.accepted} bytes; a write at {offset} leaves a gap"
                )
            fresh = memoryview(data)[self.accepted - offset :]
            if fresh:
                await self._accept(fresh)
            if eof:
                self.end()

    async def _accept(self, fresh: memoryview) -> None:
        while True:
            if self._broken:
                raise ConflictError("the program has ended or closed its standard input")
            if self._eof:
                raise ConflictError("standard input was closed by an earlier write")
            if self._buffered < BUFFERED_BYTES_MAX:
                break
            self._room.clear()
            await self._room.wait()
        self.accepted += len(fresh)
        self._buffered += len(fresh)
        self._pending.append(fresh)
        self._push()

    def end(self) -> None:
        """Close it after what was accepted. Idempotent."""
        if self._eof:
            return
        self._eof = True
        if self._terminal and not self._broken:
            self._buffered += 1
            self._pending.append(memoryview(END_OF_TRANSMISSION))
        self._room.set()
        self._push()

    def close(self) -> None:
        """The program has ended."""
        if self._fd >= 0:
            self._break()
        self._broken = True

    # ── one writing stream at a time ─────────────────────────────────────────────────────────

    def take_over(self) -> None:
        """End the stream of writes that runs, if any: whoever asks will go on from here."""
        writer, self._writer = self._writer, None
        if writer is not None and writer is not asyncio.current_task():
            writer.cancel()

    @contextlib.contextmanager
    def writing(self):
        """The calling task is the stream of writes."""
        self.take_over()
        mine = self._writer = asyncio.current_task()
        try:
            yield
        finally:
            if self._writer is mine:
                self._writer = None

    # ── the pipe ─────────────────────────────────────────────────────────────────────────────

    def _push(self) -> None:
        if self._waiting_for_pipe or self._fd < 0:
            return
        while self._pending:
            piece = self._pending[0]
            try:
                written = os.write(self._fd, piece)
            except BlockingIOError:
                self._waiting_for_pipe = True
                self._loop.add_writer(self._fd, self._writable)
                return
            except OSError:
                self._break()
                return
            self._buffered -= written
            if written == len(piece):
                self._pending.popleft()
            else:
                self._pending[0] = piece[written:]
            if self._buffered < BUFFERED_BYTES_MAX:
                self._room.set()
        if self._eof and not self._terminal:
            self._close_fd()

    def _writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._waiting_for_pipe = False
        self._push()

    def _break(self) -> None:
        self._broken = True
        self._pending.clear()
        self._buffered = 0
        self._room.set()
        self._close_fd()

    def _close_fd(self) -> None:
        if self._waiting_for_pipe:
            self._loop.remove_writer(self._fd)
            self._waiting_for_pipe = False
        os.close(self._fd)
        self._fd = -1
