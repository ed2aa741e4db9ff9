"""Use cases of Queues.

What is in which partition, and who waits for it, is in memory and decided there, one operation
after the other; each change is appended to the database's next transaction and acknowledged when
that is committed. What a get took stays as *taken* rows for a while, beside the name of its call:
the client that repeats it after a crash of the server gets the same items.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from homeport.kernel.clock import Clock
from homeport.kernel.errors import InvalidError, NotFoundError, UnavailableError
from homeport.objects.model import StoredObject
from homeport.objects.service import Objects
from homeport.queues.model import (
    TTL_S,
    Getter,
    Item,
    Partition,
    Pieces,
    Run,
    Taken,
    check_key,
    check_put,
    parse_entry_id,
    pieces_of,
    runs_of,
)
from homeport.queues.partitions import VALUE_BYTES_MAX, Partitions
from homeport.queues.store import QueueStore, StoredPack
from homeport.queues.taken import TakenItems
from homeport.storage.operations import OperationLog

log = structlog.get_logger(__name__)

_WAIT_MAX_S: Final = 86400.0
_runs_encoder: Final = msgspec.msgpack.Encoder()
_runs_decoder: Final = msgspec.msgpack.Decoder(list[Run])


class QueueSize(NamedTuple):
    """What a listing says about a Queue."""

    partitions: int
    items: int


class QueueService:
    """All Queues of the installation; their names and lives are in ``objects``.

    ``items_max`` bounds what waits in all of them, as each item takes memory. ``start`` before use.
    """

    def __init__(
        self,
        store: QueueStore,
        objects: Objects,
        operations: OperationLog,
        clock: Clock,
        *,
        items_max: int,
        value_bytes_max: int = VALUE_BYTES_MAX,
    ) -> None:
        self.objects = objects
        self._store = store
        self._operations = operations
        self._partitions = Partitions(
            clock, self._expired, items_max=items_max, value_bytes_max=value_bytes_max
        )
        self._taken = TakenItems(store.delete)
        self._reloads: dict[str, asyncio.Task[None]] = {}
        objects.on_gone(self._forget)

    async def start(self) -> None:
        """Load what waits, without values."""
        by_queue: dict[str, list[StoredPack]] = {}
        for row in await self._store.load():
            by_queue.setdefault(row.queue_id, []).append(row)
        for queue_id, rows in by_queue.items():
            self._partitions.fill(queue_id, rows)
            taken = Pieces(
                [run for row in rows for run in row.taken.whole],
                [part for row in rows for part in row.taken.parts],
            )
            if taken.whole or taken.parts:
                self._taken.add(taken, sum(row.taken_bytes() for row in rows))

    async def stop(self) -> None:
        """Expire, delete and reload no more."""
        self._taken.stop()
        self._partitions.stop()
        for task in self._reloads.values():
            task.cancel()
        await asyncio.gather(*self._reloads.values(), return_exceptions=True)

    async def _forget(self, items: Sequence[StoredObject]) -> None:
        for item in items:
            for partition in self._partitions.forget_queue(item.id):
                for future in (*(g.future for g in partition.getters), *partition.watchers):
                    if not future.done():
                        future.set_exception(NotFoundError(f"Queue {item.id!r} was deleted"))

    # ── put ─────────────────────────────────────────────────────────────────────────────────

    async def put(
        self,
        queue_id: str,
        key: bytes,
        values: Sequence[bytes],
        *,
        ttl_s: int = TTL_S,
        operation: str = "",
    ) -> None:
        """Append values to a partition, all or none, which then lives ``ttl_s`` more seconds.

        ``operation`` names the call for its repeats (``Context.operation``).
        Raises ``NotFoundError``, ``InvalidError``, and ``ExhaustedError`` while it is full.
        """
        self.objects.get(queue_id)
        check_put(key, values, ttl_s)
        if not values or await self._operations.recall(operation) is not None:
            return
        await self._ready(queue_id)
        partition = self._partitions.open(queue_id, key)
        try:
            partition.check_room(values)
            self._partitions.check_room(len(values))
            new = self._partitions.append(partition, values, ttl_s or TTL_S)
        finally:
            self._partitions.close_if_idle(partition)
        commit = self._store.put(partition, new, values, self._operations.record(operation))
        partition.last_put = commit
        commit.add_done_callback(lambda done: self._put_ended(partition, new, done))
        self._serve(partition)
        for watcher in partition.watchers:
            if not watcher.done():
                watcher.set_result(None)
        await asyncio.shield(commit)

    def _put_ended(
        self, partition: Partition, new: Sequence[Item], commit: asyncio.Future[None]
    ) -> None:
        if partition.last_put is commit:
            partition.last_put = None
        if _has_failed(commit):
            for item in new:
                item.pack.is_lost = True
            self._reload(partition.queue_id)

    # ── get ─────────────────────────────────────────────────────────────────────────────────

    async def get(
        self, queue_id: str, key: bytes, *, count: int, timeout_s: float, operation: str = ""
    ) -> list[bytes]:
        """Take up to ``count`` values from a partition as soon as there is one.

        An empty list when there was none for ``timeout_s`` seconds (0 or less: there is none
        now). Being cancelled takes nothing: what was taken goes back to where it was.
        Raises ``NotFoundError``, ``InvalidError``.
        """
        self.objects.get(queue_id)
        check_key(key)
        if count < 1:
            raise InvalidError(f"{count} items cannot be taken: ask for 1 or more")
        if (earlier := await self._operations.recall(operation)) is not None:
            return await self._taken_earlier(earlier)
        await self._ready(queue_id)
        partition = self._partitions.find(queue_id, key)
        if partition is not None and partition.items:
            taken = self._take(partition, count, operation)
        elif timeout_s > 0:
            partition = partition or self._partitions.open(queue_id, key)
            taken = await self._wait(partition, count, timeout_s, operation)
        else:
            taken = None
        return [] if taken is None else await self._delivered(taken)

    async def _taken_earlier(self, answer: bytes) -> list[bytes]:
        values = await self._store.values(_runs_decoder.decode(answer))
        return [values[seq] for seq in sorted(values)]

    async def _wait(
        self, partition: Partition, count: int, timeout_s: float, operation: str
    ) -> Taken | None:
        loop = asyncio.get_running_loop()
        getter = Getter(count, operation, loop.create_future())
        partition.getters[getter] = None
        timer = loop.call_later(min(timeout_s, _WAIT_MAX_S), _time_is_over, getter.future)
        try:
            return await getter.future
        except asyncio.CancelledError:
            if getter.future.done() and not getter.future.cancelled():
                taken = getter.future.result()
                if taken is not None:
                    self._give_back(taken)
            raise
        finally:
            timer.cancel()
            partition.getters.pop(getter, None)
            self._partitions.close_if_idle(partition)

    def _serve(self, partition: Partition) -> None:
        """Give items to those who wait, in the order they came."""
        while partition.items and partition.getters:
            getter = next(iter(partition.getters))
            del partition.getters[getter]
            if not getter.future.done():
                getter.future.set_result(self._take(partition, getter.count, getter.operation))

    def _take(self, partition: Partition, count: int, operation: str) -> Taken:
        items = self._partitions.take(partition, count)
        pieces = pieces_of(items)
        record = self._operations.record(operation, _runs_encoder.encode(pieces.runs()))
        commit = self._store.take(pieces, record)
        partition.taking += 1
        batch = self._taken.add(pieces, sum(item.size for item in items))
        taken = Taken(partition, items, pieces, record, commit, batch)
        commit.add_done_callback(lambda done: self._take_ended(taken, done))
        return taken

    def _take_ended(self, taken: Taken, commit: asyncio.Future[None]) -> None:
        if _has_failed(commit):
            self._taken.forget(taken.batch)
            self._reload(taken.partition.queue_id)

    async def _delivered(self, taken: Taken) -> list[bytes]:
        """The values, once they are the caller's."""
        try:
            await asyncio.shield(taken.commit)
            values = await self._values(taken.items)
        except asyncio.CancelledError:
            self._give_back(taken)
            raise
        except BaseException:
            self._release(taken.partition)
            raise
        self._release(taken.partition)
        return values

    def _give_back(self, taken: Taken) -> None:
        partition = taken.partition
        kept = [item for item in taken.items if item.seq > partition.cleared_seq]
        if kept:
            gone = [item for item in taken.items if item.seq <= partition.cleared_seq]
            self._taken.forget(taken.batch)
            if gone:
                self._taken.add(pieces_of(gone), sum(item.size for item in gone))
            undo = self._operations.undo(taken.record)
            self._store.give_back(taken.pieces, pieces_of(gone), undo)
            if partition.queue_id in self._reloads or any(item.pack.is_lost for item in kept):
                self._reload(partition.queue_id)
            else:
                self._partitions.give_back(partition, kept)
                self._serve(partition)
        self._release(partition)

    def _release(self, partition: Partition) -> None:
        partition.taking -= 1
        self._partitions.close_if_idle(partition)

    async def _values(self, items: Sequence[Item]) -> list[bytes]:
        """The values of committed items."""
        if any(item.pack.is_lost for item in items):
            raise UnavailableError("the items could not be written; try again")
        values = [item.value for item in items if item.value is not None]
        if len(values) == len(items):
            return values
        return [value for _, value in await self._with_values(items)]

    async def _with_values(self, items: Sequence[Item]) -> list[tuple[Item, bytes]]:
        """Items with their values, but for those whose value is not there any more."""
        missing = runs_of(item.seq for item in items if item.value is None)
        stored = await self._store.values(missing) if missing else {}
        found = [
            (item, item.value if item.value is not None else stored.get(item.seq)) for item in items
        ]
        return [(item, value) for item, value in found if value is not None]

    # ── scan ────────────────────────────────────────────────────────────────────────────────

    async def next_items(
        self, queue_id: str, key: bytes, *, last_entry_id: str, timeout_s: float
    ) -> list[tuple[str, bytes]]:
        """The next entries (id, value) after that one, left where they are.

        Waits up to ``timeout_s`` seconds for the first of them; an empty list if none comes.
        Raises ``NotFoundError``, ``InvalidError``.
        """
        self.objects.get(queue_id)
        check_key(key)
        last = parse_entry_id(last_entry_id)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(timeout_s, _WAIT_MAX_S)
        while True:
            await self._ready(queue_id)
            partition = self._partitions.find(queue_id, key)
            items = partition.after(last) if partition is not None else []
            if partition is not None and partition.last_put is not None:
                await asyncio.wait([partition.last_put])  # not to be told before it is committed
            found = await self._scanned(items)
            if found or loop.time() >= deadline:
                return found
            if not items:
                await self._watch(queue_id, key, deadline)

    async def _scanned(self, items: Sequence[Item]) -> list[tuple[str, bytes]]:
        kept = [item for item in items if not item.pack.is_lost]
        return [(str(item.seq), value) for item, value in await self._with_values(kept)]

    async def _watch(self, queue_id: str, key: bytes, deadline: float) -> None:
        """Until the next put, or ``deadline``."""
        self.objects.get(queue_id)
        partition = self._partitions.open(queue_id, key)
        loop = asyncio.get_running_loop()
        watcher: asyncio.Future[None] = loop.create_future()
        partition.watchers.add(watcher)
        timer = loop.call_at(deadline, _time_is_over, watcher)
        try:
            await watcher
        finally:
            timer.cancel()
            partition.watchers.discard(watcher)
            self._partitions.close_if_idle(partition)

    # ── the whole ───────────────────────────────────────────────────────────────────────────

    def len(self, queue_id: str, key: bytes) -> int:
        """Items in a partition. Raises ``NotFoundError``, ``InvalidError``."""
        self.objects.get(queue_id)
        check_key(key)
        partition = self._partitions.find(queue_id, key)
        return 0 if partition is None else len(partition.items)

    def size(self, queue_id: str) -> QueueSize:
        """Partitions that have items, and items in all. Raises ``NotFoundError``."""
        self.objects.get(queue_id)
        counts = [len(partition.items) for partition in self._partitions.of_queue(queue_id)]
        return QueueSize(sum(1 for count in counts if count), sum(counts))

    async def clear(self, queue_id: str, key: bytes, *, all_partitions: bool) -> None:
        """Remove the items of a partition, or of all. Raises ``NotFoundError``, ``InvalidError``."""
        self.objects.get(queue_id)
        check_key(key)
        await self._ready(queue_id)
        if all_partitions:
            partitions = self._partitions.of_queue(queue_id)
        else:
            found = self._partitions.find(queue_id, key)
            partitions = [] if found is None else [found]
        items: list[Item] = []
        for partition in partitions:
            items.extend(self._partitions.drain(partition))
            self._partitions.close_if_idle(partition)
        if items:
            try:
                await asyncio.shield(self._discard(items))
            except Exception:
                self._reload(queue_id)
                raise

    def _expired(self, partition: Partition, items: list[Item]) -> None:
        log.info("a partition has expired", queue_id=partition.queue_id, items=len(items))
        commit = self._discard(items)
        commit.add_done_callback(
            lambda done: self._reload(partition.queue_id) if _has_failed(done) else None
        )

    def _discard(self, items: list[Item]) -> asyncio.Future[list[None]]:
        """Delete items that nobody took."""
        items.sort(key=lambda item: item.seq)
        pieces = pieces_of(items)
        if pieces.parts:  # the others of their packs are still kept
            self._taken.add(Pieces(parts=pieces.parts), 0)
        return self._store.delete_rest(pieces)

    # ── when a commit failed ────────────────────────────────────────────────────────────────

    async def _ready(self, queue_id: str) -> None:
        """Until what is in memory is what the database holds."""
        while (reload := self._reloads.get(queue_id)) is not None:
            await asyncio.wait([reload])
        self.objects.get(queue_id)

    def _reload(self, queue_id: str) -> None:
        """What was decided in memory did not come to be: take up what the database holds."""
        before = self._reloads.get(queue_id)
        task = asyncio.create_task(self._load_again(queue_id, before))
        self._reloads[queue_id] = task

        def ended(_: object) -> None:
            if self._reloads.get(queue_id) is task:
                del self._reloads[queue_id]

        task.add_done_callback(ended)

    async def _load_again(self, queue_id: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        log.warning("a commit failed; the queue is read again", queue_id=queue_id)
        while True:
            try:
                rows = await self._store.load_queue(queue_id)
                break
            except Exception:
                log.exception("the queue cannot be read; it is tried again", queue_id=queue_id)
                await asyncio.sleep(1.0)
        self._partitions.fill(queue_id, rows)
        for partition in self._partitions.of_queue(queue_id):
            self._serve(partition)


def _time_is_over(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)


def _has_failed(commit: asyncio.Future[Any]) -> bool:
    return not commit.cancelled() and commit.exception() is not None
