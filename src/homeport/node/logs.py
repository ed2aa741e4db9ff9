"""A container's output on its way to the server: read without blocking, in order, bounded."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import errno
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from homeport.link.messages import LogEntry, Logs

STDOUT, STDERR, SYSTEM = 1, 2, 3
ENTRY_BYTES_MAX = 64 * 1024
READ_BYTES = 64 * 1024
DRAIN_BYTES_MAX = 1024 * 1024
"""What is read at most in one go before an output is sent: the capacity of a large pipe."""
FLUSH_S = 0.003
TAIL_BYTES = 4096
OUTAGE_BYTES_MAX = 8 * 1024 * 1024
"""Output of one task kept while the server is out of reach; then the oldest goes."""
OUTAGE_TOTAL_BYTES_MAX = 256 * 1024 * 1024
"""Of all tasks together: with many, each has its share."""
_ENTRY_COST = 400
"""Bytes that an entry takes besides its text."""


class LogSink(Protocol):
    """Where log entries go: the link, or its buffer while there is no connection."""

    def logs(self, task_id: str, entries: list[LogEntry]) -> None: ...

    @property
    def is_congested(self) -> bool:
        """Whether senders of bulk data should wait (``uncongested``)."""
        ...

    async def uncongested(self) -> None: ...


class _Pipe:
    """One descriptor being read, with its unfinished UTF-8 sequence."""

    def __init__(self, fd: int, stream: int) -> None:
        self.fd = fd
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")


class LogPump:
    """Reads a container's pipes (non-blocking, from this event loop) into ``Logs`` messages.

    ``tap`` is given every piece as it is read, with its stream.
    ``attribution`` says which ``(input_id, call_id)`` what is read now belongs to. At most one
    flush interval of output is held here; a congested link stops the reading, and the full pipe
    then stops the container.
    """

    def __init__(
        self,
        task_id: str,
        sink: LogSink,
        attribution: Callable[[], tuple[str, str]],
        tap: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self._task_id = task_id
        self._sink = sink
        self._attribution = attribution
        self._tap = tap
        self._pipes: list[_Pipe] = []
        self._entries: list[LogEntry] = []
        self._flush_handle: asyncio.TimerHandle | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._tail = b""

    def add(self, fd: int, stream: int) -> None:
        """Read ``fd`` from now on as ``stream`` (1 stdout, 2 stderr); the pump closes it."""
        os.set_blocking(fd, False)
        pipe = _Pipe(fd, stream)
        self._pipes.append(pipe)
        asyncio.get_running_loop().add_reader(fd, self._readable, pipe)

    def system(self, text: str) -> None:
        """Put a line of the platform's own between the container's output."""
        self._append(SYSTEM, text if text.endswith("\n") else text + "\n")
        self._schedule()

    @property
    def stderr_tail(self) -> str:
        """The last 4 KiB of stderr."""
        return self._tail.decode("utf-8", "replace")

    def catch_up(self) -> None:
        """Read what is in the pipes now and send it, so that it precedes what is sent next."""
        for pipe in list(self._pipes):
            budget = DRAIN_BYTES_MAX
            while budget > 0 and (count := self._read(pipe)):
                budget -= count
        self.flush()

    def flush(self) -> None:
        """Send what was read."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        if self._entries:
            entries, self._entries = self._entries, []
            self._sink.logs(self._task_id, entries)
        if self._sink.is_congested and self._waiting is None and self._pipes:
            self._pause()

    def close(self) -> None:
        """Read the rest (the container's processes are gone), send it, close the pipes."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        for pipe in list(self._pipes):
            # A pipe holds at most a megabyte; who still writes is not the container.
            budget = 2 * DRAIN_BYTES_MAX
            while budget > 0 and (count := self._read(pipe)):
                budget -= count
            self._close(pipe)
        self.flush()

    # ── inside ────────────────────────────────────────────────────────────────────────────────

    def _readable(self, pipe: _Pipe) -> None:
        if self._read(pipe):
            self._schedule()

    def _read(self, pipe: _Pipe) -> int:
        """One read; 0 when there is nothing (more)."""
        if pipe not in self._pipes:
            return 0
        try:
            data = os.read(pipe.fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the other end of a terminal is closed
                raise
            data = b""
        if not data:
            self._close(pipe)
            return 0
        if pipe.stream == STDERR:
            self._tail = (self._tail + data)[-TAIL_BYTES:]
        if self._tap is not None:
            self._tap(pipe.stream, data)
        self._append(pipe.stream, pipe.decoder.decode(data))
        return len(data)

    def _append(self, stream: int, text: str) -> None:
        if not text:
            return
        input_id, call_id = self._attribution()
        if self._entries:
            last = self._entries[-1]
            if (
                last.fd == stream
                and last.input_id == input_id
                and len(last.data) + len(text) <= ENTRY_BYTES_MAX // 4
            ):
                last.data += text
                return
        self._entries.append(LogEntry(stream, time.time_ns(), text, input_id, call_id))

    def _schedule(self) -> None:
        if self._flush_handle is None and self._entries:
            self._flush_handle = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        for pipe in self._pipes:
            loop.remove_reader(pipe.fd)
        self._waiting = loop.create_task(self._resume())

    async def _resume(self) -> None:
        await self._sink.uncongested()
        self._waiting = None
        loop = asyncio.get_running_loop()
        for pipe in self._pipes:
            loop.add_reader(pipe.fd, self._readable, pipe)

    def _close(self, pipe: _Pipe) -> None:
        if pipe not in self._pipes:
            return
        self._pipes.remove(pipe)
        self._append(pipe.stream, pipe.decoder.decode(b"", final=True))
        asyncio.get_running_loop().remove_reader(pipe.fd)
        with contextlib.suppress(OSError):
            os.close(pipe.fd)
        self._schedule()


class LogOutbox:
    """Log messages of all tasks, numbered, until the server has recorded them."""

    def __init__(
        self, bytes_max: int = OUTAGE_BYTES_MAX, total_bytes_max: int = OUTAGE_TOTAL_BYTES_MAX
    ) -> None:
        self._bytes_max = bytes_max
        self._total_bytes_max = total_bytes_max
        self._origin = secrets.token_hex(8)
        self._seq = 0
        self._tasks: dict[str, _Held] = {}

    def add(self, task_id: str, entries: list[LogEntry]) -> Logs:
        """The message with these entries, which is kept."""
        self._seq += 1
        kept = _Kept(self._seq, entries)
        self._tasks.setdefault(task_id, _Held()).add(kept)
        return self._message(task_id, kept)

    def bound(self, task_id: str) -> None:
        """Drop the oldest messages of a task over the bound, but for the newest; they are counted."""
        if (held := self._tasks.get(task_id)) is not None:
            held.bound(min(self._bytes_max, self._total_bytes_max // len(self._tasks)))

    def taken(self, seq: int) -> None:
        """The server has recorded the messages up to that number."""
        for task_id, held in list(self._tasks.items()):
            held.taken(seq)
            if not held.kept:
                del self._tasks[task_id]

    @property
    def size(self) -> int:
        """Bytes kept."""
        return sum(held.size for held in self._tasks.values())

    @property
    def is_empty(self) -> bool:
        return not self._tasks

    def messages(self) -> list[Logs]:
        """What is kept, in order, to be sent (again)."""
        kept = [(one, task_id) for task_id, held in self._tasks.items() for one in held.kept]
        kept.sort(key=lambda pair: pair[0].seq)
        return [self._message(task_id, one) for one, task_id in kept]

    def _message(self, task_id: str, kept: _Kept) -> Logs:
        return Logs(task_id, kept.told(), self._origin, kept.seq)


class _Held:
    """What is kept of one task."""

    def __init__(self) -> None:
        self.kept: deque[_Kept] = deque()
        self.size = 0

    def add(self, kept: _Kept) -> None:
        self.kept.append(kept)
        self.size += kept.size

    def taken(self, seq: int) -> None:
        while self.kept and self.kept[0].seq <= seq:
            self.size -= self.kept.popleft().size

    def bound(self, bytes_max: int) -> None:
        while self.size > bytes_max and len(self.kept) > 1:
            dropped = self.kept.popleft()
            self.size -= dropped.size
            self.kept[0].lost += dropped.lost + dropped.characters


class _Kept:
    """One message. Before it, ``lost`` characters of the task were dropped."""

    def __init__(self, seq: int, entries: list[LogEntry]) -> None:
        self.seq = seq
        self.lost = 0
        self.characters = sum(len(entry.data) for entry in entries)
        self._entries = entries

    @property
    def size(self) -> int:
        return self.characters + _ENTRY_COST * len(self._entries)

    def told(self) -> list[LogEntry]:
        if not self.lost:
            return self._entries
        text = f"[{self.lost} characters of output were lost while the server was away]\n"
        return [LogEntry(SYSTEM, self._entries[0].time_ns, text), *self._entries]
