"""A sandbox's standard streams: output is kept for later readers, input is taken once."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from homeport.kernel.errors import ConflictError, InvalidError
from homeport.node.pieces import PIECE_BYTES_MAX, pieces

SPOOL_BYTES_MAX: Final = 64 * 1024 * 1024
"""Newest output of one stream that can be read again; older output goes."""
SPOOL_MEMORY_BYTES: Final = 64 * 1024
"""Output up to this size needs no file."""
STDIN_BYTES_MAX: Final = 16 * 1024 * 1024
"""Input that a program has not read yet, beyond which its writers wait."""


class Spool:
    """One output stream: everything up to a bound, for any number of readers at any offset.

    The file has no name, so nothing is left behind, whatever becomes of the node.
    """

    def __init__(self, directory: Path, bytes_max: int = SPOOL_BYTES_MAX) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._memory = bytearray()
        self._fd = -1
        self._total = 0
        self._is_over = False
        self._more = asyncio.Event()

    @property
    def total(self) -> int:
        """Bytes written so far."""
        return self._total

    @property
    def kept(self) -> int:
        """Bytes on disk."""
        return min(self._total, self._bytes_max) if self._fd >= 0 else 0

    def write(self, data: bytes) -> None:
        """Append; goes to the page cache, so it does not wait for a disk."""
        if self._fd < 0 and len(self._memory) + len(data) <= SPOOL_MEMORY_BYTES:
            self._memory += data
        else:
            self._to_file(data)
        self._total += len(data)
        self._wake()

    def finish(self) -> None:
        """No more will come."""
        self._is_over = True
        self._wake()

    def close(self) -> None:
        """Forget everything."""
        self.finish()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._memory.clear()
        self._total = 0

    async def read(self, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """From byte ``offset`` to the end: ``(offset of the piece, piece)``, none of them empty.

        What is gone already is skipped, so a piece may begin later than asked.
        """
        while True:
            offset = max(offset, self._total - self._bytes_max)
            if offset < self._total:
                for data in pieces(self._at(offset)):
                    yield offset, data
                    offset += len(data)
            elif self._is_over:
                return
            else:
                await self._more.wait()

    def _wake(self) -> None:
        event, self._more = self._more, asyncio.Event()
        event.set()

    def _at(self, offset: int) -> bytes:
        size = min(PIECE_BYTES_MAX, self._total - offset)
        if self._fd < 0:
            return bytes(self._memory[offset : offset + size])
        place = offset % self._bytes_max
        return os.pread(self._fd, min(size, self._bytes_max - place), place)

    def _to_file(self, data: bytes) -> None:
        if self._fd < 0:
            self._fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            memory, self._memory = bytes(self._memory), bytearray()
            self._put(memory, 0)
        self._put(data, self._total)

    def _put(self, data: bytes, offset: int) -> None:
        """Write into the file, which is a ring of ``bytes_max``."""
        view = memoryview(data)
        while view:
            place = offset % self._bytes_max
            written = os.pwrite(self._fd, view[: self._bytes_max - place], place)
            view = view[written:]
            offset += written


class Stdin:
    """A program's standard input. ``fd`` is the writable end, or -1 without one."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        self._fd = -1
        self._is_terminal = is_terminal
        self._pending: deque[bytes] = deque()
        self._size = 0
        self._accepted = 0
        self._index = 0
        self._is_closed = False
        self._is_broken = False
        self._watching = False
        self._room = asyncio.Event()
        self._room.set()
        self._turn = asyncio.Lock()

    @property
    def accepted(self) -> int:
        """Bytes taken so far."""
        return self._accepted

    def open(self, fd: int) -> None:
        """The program runs: what was taken goes to ``fd``, which now belongs to this object."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._flush()

    async def write(self, offset: int, data: bytes, *, eof: bool) -> None:
        """Take ``data``, which is at byte ``offset`` of the stream, and its end with ``eof``.

        What was taken before is dropped. Raises ``InvalidError`` for a gap, ``ConflictError`` when
        the program cannot read it any more.
        """
        async with self._turn:
            await self._room.wait()
            if data:
                if offset > self._accepted:
                    raise InvalidError(
                        f"input is written at byte {offset}; only {self._accepted} came before it"
                    )
                data = data[self._accepted - offset :]
            self._take(data, eof=eof)

    async def write_numbered(self, index: int, data: bytes, *, eof: bool) -> None:
        """As ``write``, for pieces numbered from 1."""
        async with self._turn:
            await self._room.wait()
            if index > self._index:
                self._take(data, eof=eof)
                self._index = index

    def close(self) -> None:
        """The program is gone."""
        self._is_broken = True
        self._drop()

    def _take(self, data: bytes, *, eof: bool) -> None:
        if self._is_broken:
            raise ConflictError("the program has ended, or closed its input")
        if data:
            if self._is_closed:
                raise ConflictError("the input was closed by its writer already")
            self._accepted += len(data)
            self._append(data)
        if eof and not self._is_closed:
            self._is_closed = True
            if self._is_terminal:
                self._append(b"\x04")
        self._flush()

    def _append(self, data: bytes) -> None:
        self._pending.append(data)
        self._size += len(data)
        if self._size >= STDIN_BYTES_MAX:
            self._room.clear()

    def _flush(self) -> None:
        if self._fd < 0:
            return
        try:
            while self._pending:
                data = self._pending[0]
                written = os.write(self._fd, data)
                self._size -= written
                if written < len(data):
                    self._pending[0] = data[written:]
                else:
                    self._pending.popleft()
        except BlockingIOError:
            self._watch(wanted=True)
            return
        except OSError:  # EPIPE, EIO: nobody reads any more
            self.close()
            return
        finally:
            if self._size < STDIN_BYTES_MAX:
                self._room.set()
        self._watch(wanted=False)
        if self._is_closed and not self._is_terminal:
            self._drop()

    def _watch(self, *, wanted: bool) -> None:
        loop = asyncio.get_running_loop()
        if wanted and not self._watching:
            loop.add_writer(self._fd, self._flush)
        elif not wanted and self._watching:
            loop.remove_writer(self._fd)
        self._watching = wanted

    def _drop(self) -> None:
        """Close the descriptor and forget what was not delivered."""
        if self._fd >= 0:
            self._watch(wanted=False)
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
        self._pending.clear()
        self._size = 0
        self._room.set()


class Stdio:
    """The streams of one sandbox."""

    def __init__(self, directory: Path, *, is_terminal: bool) -> None:
        self.stdin = Stdin(is_terminal=is_terminal)
        self._spools = {1: Spool(directory), 2: Spool(directory)}

    def read(self, fd: int, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """Output of ``fd`` (1 stdout, 2 stderr), live and after the end; see ``Spool.read``."""
        return self._spools[fd].read(offset)

    def take(self, fd: int, data: bytes) -> None:
        """The program wrote this."""
        spool = self._spools.get(fd)
        if spool is not None:
            spool.write(data)

    @property
    def kept(self) -> int:
        """Bytes on disk."""
        return sum(spool.kept for spool in self._spools.values())

    def finish(self) -> None:
        """The program is gone, and all of its output was read."""
        self.stdin.close()
        for spool in self._spools.values():
            spool.finish()

    def close(self) -> None:
        """Forget everything."""
        self.stdin.close()
        for spool in self._spools.values():
            spool.close()
