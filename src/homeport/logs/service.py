"""Use cases of logs: append, follow, search."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Final

import msgspec
import structlog

from homeport.kernel.clock import Clock, SystemClock
from homeport.kernel.errors import InvalidError
from homeport.link.messages import LogEntry
from homeport.logs.model import (
    BUCKETS_MAX,
    FETCH_ENTRIES_MAX,
    RANGE_S_MAX,
    STDERR,
    STDOUT,
    SYSTEM,
    Bucket,
    Done,
    Entry,
    Ephemeral,
    Event,
    Filter,
    QueueProgress,
    Source,
    TaskState,
)
from homeport.logs.store import LogStore
from homeport.logs.stream import AppStream, Reader

log = structlog.get_logger(__name__)

CHUNK_ENTRIES: Final = 1_000
"""Entries given to a reader at once: bounds what a slow one keeps in memory."""
HISTORY_ENTRIES: Final = 1_000
"""Entries from before the app's present run that a new reader is shown."""
UNCOMMITTED_BYTES_MAX: Final = 32 * 1024 * 1024
"""Text waiting for the database, beyond which ``drain`` holds its caller back."""
COMMIT_S: Final = 2.0
"""What came in a reader's time is waited for that long beyond it, until it is committed."""
_STREAMS_MAX: Final = 256
_NS: Final = 1_000_000_000
_PRUNE_ROWS: Final = 5_000


class LogService:
    """The output of all apps: recorded, passed on live, kept for ``retention_s`` seconds.

    ``bytes_max`` bounds the text kept in all.
    """

    def __init__(
        self,
        store: LogStore,
        *,
        retention_s: float = 7 * 86400.0,
        bytes_max: int = 8 * 1024**3,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._retention_s = retention_s
        self._bytes_max = bytes_max
        self._clock = clock or SystemClock()
        self._last_id = 0
        self._streams: dict[str, AppStream] = {}
        self._finished: set[str] = set()
        self._opened: dict[str, int] = {}
        self._uncommitted_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._stored_bytes: int | None = None
        self._positions: dict[str, tuple[int, int]] = {}
        """By origin: the number of what came last of it, and when (Unix ns)."""
        self._last_write: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Continue the ids of earlier runs.

        Ids start from the clock in microseconds, so they grow even if all older entries are gone
        and clients that resume with an id of an earlier run miss nothing.
        """
        self._last_id = max(await self._store.last_id(), time.time_ns() // 1_000)
        self._positions = await self._store.positions()

    # ── writing ─────────────────────────────────────────────────────────────────────────────

    def append(
        self,
        app_id: str,
        task_id: str,
        function_id: str,
        entries: Sequence[LogEntry],
        image_id: str = "",
        root_function_id: str = "",
        source: Source | None = None,
    ) -> asyncio.Future[None] | None:
        """Take a task's output: the database has it with its next commit, then readers do.

        Returns what is done when it is committed, if there is anything; that ``source`` was taken is
        committed with it. A caller that produces without end awaits ``drain`` in between.
        """
        if not entries:
            return None
        first = self._last_id + 1
        self._last_id += len(entries)
        records = [
            Entry(
                id,
                app_id,
                task_id,
                function_id,
                root_function_id,
                image_id,
                entry.call_id,
                entry.input_id,
                entry.fd,
                entry.time_ns,
                entry.data,
            )
            for id, entry in enumerate(entries, first)
        ]
        return self._add(self._stream(app_id, first - 1), records, source)

    def is_new(self, source: Source) -> bool:
        """Whether a node's message was not taken before; from now on it was."""
        known = self._positions.get(source.origin)
        if known is not None and source.seq <= known[0]:
            return False
        self._positions[source.origin] = (source.seq, self._now_ns())
        return True

    @property
    def last_write(self) -> asyncio.Future[None] | None:
        """Done when all that was taken until now is committed, if anything was."""
        return self._last_write

    def system(self, app_id: str, text: str, *, task_id: str = "", function_id: str = "") -> None:
        """Say something to the app's user in the platform's own voice (one line)."""
        line = text if text.endswith("\n") else text + "\n"
        entry = LogEntry(SYSTEM, self._now_ns(), line)
        self.append(app_id, task_id, function_id, [entry])

    def task_state(self, app_id: str, task_id: str, state: int, function_id: str = "") -> None:
        """Tell readers how far a task is (``TaskState`` of the client's protocol).

        ``TASK_STATE_COMPLETED`` also ends streams of that task alone: call it after its last
        output.
        """
        self._stream(app_id, self._last_id).publish(TaskState(task_id, function_id, state))

    def progress(
        self, app_id: str, function_id: str, position: int, length: int, description: str
    ) -> None:
        """Tell readers how far a function's queue is."""
        event = QueueProgress(function_id, position, length, description)
        self._stream(app_id, self._last_id).publish(event)

    def finish(self, app_id: str) -> None:
        """No more output will come: readers are told so once they have read all."""
        self._finished.add(app_id)
        if stream := self._streams.get(app_id):
            stream.task_states.clear()
            stream.wake()

    def reopen(self, app_id: str) -> None:
        """The app runs (again)."""
        self._finished.discard(app_id)
        self._opened[app_id] = self._last_id

    @property
    def position(self) -> int:
        """The id of the newest entry: what comes after it has a higher one."""
        return self._last_id

    @property
    def is_behind(self) -> bool:
        """Whether the database is too far behind: callers should ``drain`` before adding more."""
        return not self._room.is_set()

    async def drain(self) -> None:
        """Wait until the database has caught up to a bounded distance."""
        await self._room.wait()

    def _now_ns(self) -> int:
        return int(self._clock.now() * _NS)

    def _add(
        self, stream: AppStream, records: list[Entry], source: Source | None
    ) -> asyncio.Future[None]:
        size = sum(len(record.data) for record in records)
        stream.append(records)
        self._uncommitted_bytes += size
        if self._uncommitted_bytes > UNCOMMITTED_BYTES_MAX:
            self._room.clear()
        written = self._store.append(records, source, self._now_ns())
        written.add_done_callback(partial(self._committed, stream, records[-1].id, size))
        stream.last_write = self._last_write = written
        return written

    def _committed(
        self, stream: AppStream, id: int, size: int, future: asyncio.Future[None]
    ) -> None:
        if not future.cancelled() and (error := future.exception()):
            log.error("log entries were not recorded", last_id=id, error=str(error))
        stream.committed(id)
        self._uncommitted_bytes -= size
        if self._stored_bytes is not None:
            self._stored_bytes += size
        if self._uncommitted_bytes <= UNCOMMITTED_BYTES_MAX:
            self._room.set()

    def _stream(self, app_id: str, floor: int) -> AppStream:
        stream = self._streams.pop(app_id, None)
        if stream is None:
            stream = AppStream(floor)
            if len(self._streams) >= _STREAMS_MAX:
                self._drop_idle()
        self._streams[app_id] = stream  # the most recently used is last
        return stream

    def _drop_idle(self) -> None:
        for app_id, stream in self._streams.items():
            if stream.is_idle:
                del self._streams[app_id]
                if app_id in self._finished:
                    self._opened.pop(app_id, None)
                return

    # ── following ───────────────────────────────────────────────────────────────────────────

    async def follow(
        self,
        app_id: str,
        filter: Filter,
        *,
        after_id: int | None,
        timeout_s: float,
        task_finished: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Entries after ``after_id`` as they come, for ``timeout_s`` seconds or until ``Done``.

        Without ``after_id`` it starts with the app's present run and a little before it. With
        ``filter.task_id`` the stream is done when that task is; ``task_finished`` says it is so.
        """
        stream = self._stream(app_id, self._last_id)
        reader = Reader()
        stream.readers.add(reader)
        try:
            cursor = after_id
            if cursor is None:
                cursor = await self._history_start(app_id, stream, filter)
                reader.ephemeral.extendleft(reversed(stream.task_states.values()))
            follower = _Follower(self, app_id, stream, reader, filter, cursor, task_finished)
            async with aclosing(follower.run(timeout_s)) as events:
                async for event in events:
                    yield event
        finally:
            stream.readers.discard(reader)

    def is_finished(self, app_id: str) -> bool:
        """Whether the app's output has ended."""
        return app_id in self._finished

    async def next_entries(
        self, app_id: str, stream: AppStream, filter: Filter, cursor: int
    ) -> tuple[list[Entry], int]:
        """The next matching entries and the cursor after them (unchanged: nothing is left)."""
        floor = stream.floor
        if cursor >= floor:
            entries = stream.after(cursor, CHUNK_ENTRIES)
            if not entries:
                return [], cursor
            return [entry for entry in entries if filter.matches(entry)], entries[-1].id
        entries = await self._store.after(app_id, filter, cursor, floor, CHUNK_ENTRIES)
        return entries, entries[-1].id if len(entries) == CHUNK_ENTRIES else floor

    async def _history_start(self, app_id: str, stream: AppStream, filter: Filter) -> int:
        opened = min(self._opened.get(app_id, self._last_id), stream.floor)
        return await self._store.nth_before(app_id, filter, opened, HISTORY_ENTRIES)

    # ── history ─────────────────────────────────────────────────────────────────────────────

    async def fetch(
        self, app_id: str, filter: Filter, *, since_ns: int, until_ns: int, limit: int
    ) -> list[Entry]:
        """The newest ``limit`` entries with ``since_ns <= time < until_ns``, oldest first."""
        _check_range(since_ns, until_ns)
        await self._flushed(app_id)
        count = min(limit or FETCH_ENTRIES_MAX, FETCH_ENTRIES_MAX)
        return await self._store.newest(app_id, _of_app(filter), since_ns, until_ns, count)

    async def count(
        self, app_id: str, filter: Filter, *, since_ns: int, until_ns: int, bucket_s: int
    ) -> list[Bucket]:
        """Entries per bucket of ``bucket_s`` seconds: contiguous, aligned, over the whole range."""
        _check_range(since_ns, until_ns)
        bucket_ns = max(1, bucket_s) * _NS
        first, last = since_ns // bucket_ns, -(-until_ns // bucket_ns)
        if bucket_s < 1 or last - first > BUCKETS_MAX:
            raise InvalidError(f"a count has up to {BUCKETS_MAX} buckets of a second or more")
        await self._flushed(app_id)
        rows = await self._store.count(app_id, _of_app(filter), since_ns, until_ns, bucket_ns)
        counts = {(bucket, fd): number for bucket, fd, number in rows}
        return [
            Bucket(
                bucket * bucket_s,
                counts.get((bucket, STDOUT), 0),
                counts.get((bucket, STDERR), 0),
                counts.get((bucket, SYSTEM), 0),
            )
            for bucket in range(first, last)
        ]

    async def prune(self) -> int:
        """Delete what is older than the retention or beyond the size limit; how many entries."""
        if self._stored_bytes is None:
            self._stored_bytes = await self._store.total_bytes()
        before_ns = round((self._clock.now() - self._retention_s) * _NS)
        for origin in [o for o, (_, heard_ns) in self._positions.items() if heard_ns < before_ns]:
            del self._positions[origin]
        await self._store.delete_positions(before_ns)
        total = 0
        while True:
            over = max(0, self._stored_bytes - self._bytes_max)
            count, freed = await self._store.delete_oldest(before_ns, over, _PRUNE_ROWS)
            self._stored_bytes -= freed
            total += count
            if count < _PRUNE_ROWS:
                return total

    async def _flushed(self, app_id: str) -> None:
        stream = self._streams.get(app_id)
        if stream and stream.last_write and not stream.last_write.done():
            await asyncio.wait([stream.last_write])


class _Follower:
    """One run of ``LogService.follow``."""

    def __init__(
        self,
        service: LogService,
        app_id: str,
        stream: AppStream,
        reader: Reader,
        filter: Filter,
        cursor: int,
        task_finished: bool,
    ) -> None:
        self._service = service
        self._app_id = app_id
        self._stream = stream
        self._reader = reader
        self._filter = filter
        self._cursor = cursor
        self._task_finished = task_finished

    async def run(self, timeout_s: float) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        end: int | None = None  # once time is up: the id after which we stop
        while True:
            self._reader.wake.clear()
            done, behind = self._is_done(), self._stream.is_behind
            before = self._cursor
            entries, self._cursor = await self._service.next_entries(
                self._app_id, self._stream, self._filter, before
            )
            for event in self._ephemeral():
                yield event
            if entries:
                yield entries
            now = loop.time()
            if end is None and now >= deadline:
                end = self._stream.last_id
                deadline = now + COMMIT_S
            if self._cursor != before:
                if end is not None and self._cursor >= end:
                    return
                continue
            if done and not behind:
                yield Done()
                return
            if end is not None and (not behind or now >= deadline):
                return
            await self._wait(deadline - now)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._reader.wake.wait()

    def _is_done(self) -> bool:
        task_id = self._filter.task_id
        if task_id and (self._task_finished or task_id in self._stream.finished_tasks):
            return True
        return self._service.is_finished(self._app_id)

    def _ephemeral(self) -> list[Ephemeral]:
        events = self._reader.take_ephemeral()
        filter = self._filter
        if filter.fd or filter.call_id or filter.input_id:
            return []
        function_id = filter.variant_id or filter.function_id
        return [
            event
            for event in events
            if (not function_id or event.function_id == function_id)
            and (
                not filter.task_id
                or (isinstance(event, TaskState) and event.task_id == filter.task_id)
            )
        ]


def _of_app(filter: Filter) -> Filter:
    """Image builds are in an app's history by their own id only (``modal image logs``).

    A stream has them too: clients tell them by ``image_id`` and choose.
    """
    return filter if filter.task_id else msgspec.structs.replace(filter, without_builds=True)


def _check_range(since_ns: int, until_ns: int) -> None:
    if until_ns - since_ns > (RANGE_S_MAX + 1) * _NS:
        raise InvalidError(f"a time range of logs is at most {RANGE_S_MAX // 86400} days")
