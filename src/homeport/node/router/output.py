"""What a program printed, kept so that it can be read from any place, more than once."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from homeport.node.pieces import pieces
from homeport.node.runtime import linux

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_BYTES: Final = 256 * 1024
"""Most bytes handed out at a time."""
MEMORY_BYTES: Final = 256 * 1024
"""The beginning of an output that is kept in memory; the rest goes to a file."""
KEPT_BYTES_MAX: Final = 512 * 1024 * 1024
"""More than that of one output is not kept: its writer waits for readers (see ``_room``)."""
MARGIN_BYTES: Final = 128 * 1024 * 1024
"""So far behind a reader data stay: two of the clients' flow-control windows, which a reader that
lost its connection may ask for again."""
_PUNCH_BYTES: Final = 32 * 1024 * 1024


class GoneError(Exception):
    """The asked part is no longer kept; ``start`` is where what is kept begins."""

    def __init__(self, start: int) -> None:
        super().__init__(f"the output is kept from byte {start} on only")
        self.start = start


class Output:
    """One stream's bytes, from its first to its last.

    Up to ``KEPT_BYTES_MAX`` all of it is kept. Beyond that the oldest part goes as readers go
    ahead; without a reader ``append`` waits, as a full pipe would. ``folder`` is where its file
    is; the file has no name and so ends with this process. Readers of one that ``has_lines`` may
    look for them: they get pieces that make that cheap.
    """

    def __init__(self, folder: Path, *, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._folder = folder
        self.has_lines = True
        self._kept_bytes_max = kept_bytes_max
        self._head = bytearray()
        self._file = -1
        self._busy = 0
        self._size = 0
        self._start = 0
        self._ended = False
        self._closed = False
        self._readers: dict[object, int] = {}
        """Where each of those who read now is."""
        self._taken = -1
        """How far anybody has come; -1: nobody ever read."""
        self._grown = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size

    @property
    def memory(self) -> int:
        """Bytes held in memory."""
        return len(self._head)

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def is_read(self) -> bool:
        """Somebody reads now."""
        return bool(self._readers)

    @property
    def is_untaken(self) -> bool:
        """There is, or may be, something that nobody has read."""
        return self._taken < self._size and not (self._ended and not self._size)

    async def read_up(self, *, to_end: bool) -> None:
        """Until those who read now have all there is, or have come to the end of it."""
        while any(to_end or offset < self._size for offset in self._readers.values()):
            self._moved.clear()
            await self._moved.wait()

    async def append(self, data: bytes) -> None:
        """Keep ``data``; waits while there is no room. What comes after the end is dropped."""
        while not self._ended and not self._room(len(data)):
            self._moved.clear()
            await self._moved.wait()
        if self._ended:
            return
        if self._file < 0 and len(self._head) + len(data) <= MEMORY_BYTES:
            self._head += data
        else:
            await self._with_file(self._write, data)
            if self._ended:
                return
        self._size += len(data)
        self._grown.set()

    def end(self) -> None:
        """Nothing more comes. Idempotent."""
        self._ended = True
        self._grown.set()
        self._moved.set()

    def close(self) -> None:
        """Free everything; readers end."""
        self.end()
        self._closed = True
        self._head.clear()
        self._close_file()

    async def read(self, offset: int) -> AsyncIterator[bytes]:
        """Pieces from byte ``offset`` on, none of them empty, until the end. Raises ``GoneError``."""
        reader = object()
        try:
            while True:
                self._readers[reader] = offset
                self._taken = max(self._taken, offset)
                self._moved.set()
                if offset < self._start:
                    raise GoneError(self._start)
                while offset >= self._size:
                    if self._ended:
                        return
                    self._grown.clear()
                    await self._grown.wait()
                if self._closed:
                    raise GoneError(self._size)
                data = await self._slice(offset, min(self._size, offset + CHUNK_BYTES))
                if not data:
                    raise GoneError(self._start)
                for piece in pieces(data) if self.has_lines else (data,):
                    self._readers[reader] = offset
                    self._moved.set()
                    offset += len(piece)
                    yield piece
        finally:
            self._readers.pop(reader, None)
            self._moved.set()

    def _room(self, size: int) -> bool:
        if self._size + size - self._start <= self._kept_bytes_max:
            return True
        if not self._readers:
            return False
        free = min(self._readers.values()) - MARGIN_BYTES
        if free - self._start >= min(_PUNCH_BYTES, self._kept_bytes_max // 4):
            self._forget(free)
        return self._size + size - self._start <= self._kept_bytes_max

    def _forget(self, before: int) -> None:
        """Free what is before that byte. The beginning in memory is not much: it just stays."""
        kept = len(self._head)
        if self._file >= 0 and before > kept:
            with contextlib.suppress(OSError):
                linux.punch_hole(self._file, max(0, self._start - kept), before - kept)
        self._start = before

    async def _slice(self, start: int, end: int) -> bytes:
        kept = len(self._head)
        if start < kept:
            return bytes(self._head[start : min(end, kept)])
        return await self._with_file(self._read, end - start, start - kept)

    async def _with_file(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do ``work`` in a thread; the file's descriptor stays meanwhile, whatever happens."""
        self._busy += 1
        running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
        running.add_done_callback(self._done)
        return await asyncio.shield(running)

    def _done(self, _running: asyncio.Future[Any]) -> None:
        self._busy -= 1
        if self._closed:
            self._close_file()

    def _close_file(self) -> None:
        if self._file >= 0 and not self._busy:
            os.close(self._file)
            self._file = -1

    def _read(self, length: int, position: int) -> bytes:
        return os.pread(self._file, length, position) if self._file >= 0 else b""

    def _write(self, data: bytes) -> None:
        if self._file < 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
            self._file = os.open(self._folder, flags, 0o600)
        position = self._size - len(self._head)
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, position)
            position += written
            view = view[written:]
