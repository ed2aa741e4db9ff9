"""The partitions of all Queues, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Final

from homeport.kernel.clock import Clock
from homeport.kernel.errors import ExhaustedError
from homeport.queues.model import PARTITIONS_MAX, Item, Partition, packs_of
from homeport.queues.store import StoredPack

VALUE_BYTES_MAX: Final = 128 * 1024 * 1024
"""Memory for values of items that wait; further ones are read from the database when taken."""
_TIMER_MAX_S: Final = 86400.0


class Partitions:
    """Partitions by Queue and key; those that nobody uses and nothing is in are forgotten.

    ``expired`` is called with the items of a partition whose time is over.
    """

    def __init__(
        self,
        clock: Clock,
        expired: Callable[[Partition, list[Item]], None],
        *,
        items_max: int,
        value_bytes_max: int = VALUE_BYTES_MAX,
    ) -> None:
        self._clock = clock
        self._expired = expired
        self._items_max = items_max
        self._value_bytes_max = value_bytes_max
        self._of: dict[str, dict[bytes, Partition]] = {}
        self._items = 0
        self._value_bytes = 0
        self._last_seq = 0

    def stop(self) -> None:
        """Let nothing expire any more."""
        for partitions in self._of.values():
            for partition in partitions.values():
                _unwatch(partition)

    # ── partitions ──────────────────────────────────────────────────────────────────────────

    def find(self, queue_id: str, key: bytes) -> Partition | None:
        """The partition, if anything is in it or anybody uses it."""
        partition = self._of.get(queue_id, {}).get(key)
        if partition is not None and partition.items and self._is_over(partition):
            self._expire(partition)
            partition = self._of.get(queue_id, {}).get(key)
        return partition

    def open(self, queue_id: str, key: bytes) -> Partition:
        """The partition, made if need be. Raises ``ExhaustedError`` if there are too many."""
        partition = self.find(queue_id, key)
        if partition is None:
            partitions = self._of.setdefault(queue_id, {})
            if len(partitions) >= PARTITIONS_MAX:
                raise ExhaustedError(
                    f"the queue is full: it has {len(partitions)} partitions, the most possible"
                )
            partition = partitions[key] = Partition(queue_id, key)
        return partition

    def of_queue(self, queue_id: str) -> list[Partition]:
        """All that are open."""
        keys = list(self._of.get(queue_id, {}))
        found = [self.find(queue_id, key) for key in keys]
        return [partition for partition in found if partition is not None]

    def close_if_idle(self, partition: Partition) -> None:
        """Forget it if nothing is in it and nobody uses it."""
        if partition.items:
            return
        _unwatch(partition)
        partitions = self._of.get(partition.queue_id)
        if partition.is_idle and partitions and partitions.get(partition.key) is partition:
            del partitions[partition.key]
            if not partitions:
                del self._of[partition.queue_id]

    def forget_queue(self, queue_id: str) -> list[Partition]:
        """Forget a Queue that was deleted; the partitions it had, emptied."""
        partitions = list(self._of.pop(queue_id, {}).values())
        for partition in partitions:
            self.drain(partition)
        return partitions

    # ── items ───────────────────────────────────────────────────────────────────────────────

    def check_room(self, count: int) -> None:
        """Raise ``ExhaustedError`` if ``count`` more items are too many for the installation."""
        if self._items + count > self._items_max:
            raise ExhaustedError(
                f"the queues of this installation are full: they hold {self._items} of "
                f"{self._items_max} items (setting queue_items_max)"
            )

    def append(self, partition: Partition, values: Sequence[bytes], ttl_s: float) -> list[Item]:
        """New items at the end of the partition, which lives ``ttl_s`` more seconds."""
        partition.expires_at = self._clock.now() + ttl_s
        # Consecutive numbers: what was put together is then taken by one range.
        first = max(self._last_seq + 1, int(self._clock.now() * 1e6))
        self._last_seq = first + len(values) - 1
        sizes = list(map(len, values))
        fit = self._value_bytes + sum(sizes) <= self._value_bytes_max
        new: list[Item] = []
        for pack in packs_of(first, sizes):
            part = slice(pack.first - first, pack.last - first + 1)
            seqs = range(pack.first, pack.last + 1)
            kept = values[part] if fit else repeat(None)
            new.extend(map(Item, seqs, sizes[part], kept, repeat(pack)))
        self._enter(partition, new)
        self._watch(partition)
        return new

    def _enter(self, partition: Partition, items: Sequence[Item]) -> None:
        partition.append(items)
        self._items += len(items)
        self._value_bytes += _value_bytes(items)

    def take(self, partition: Partition, count: int) -> list[Item]:
        """The first items, up to ``count``."""
        return self._left(partition.take(count))

    def drain(self, partition: Partition) -> list[Item]:
        """Take all items out; those that gets have are not given back any more."""
        partition.cleared_seq = self._last_seq
        _unwatch(partition)
        return self._left(partition.drain())

    def _left(self, items: list[Item]) -> list[Item]:
        self._items -= len(items)
        self._value_bytes -= _value_bytes(items)
        return items

    def give_back(self, partition: Partition, items: Sequence[Item]) -> None:
        """Put taken items where they were."""
        partition.give_back(items)
        self._items += len(items)
        self._value_bytes += _value_bytes(items)
        self._watch(partition)

    def fill(self, queue_id: str, stored: Sequence[StoredPack]) -> None:
        """Make the Queue's partitions hold what the database does, in that order."""
        for partition in self._of.get(queue_id, {}).values():
            self._left(partition.drain())
        for row in stored:
            self._last_seq = max(self._last_seq, row.pack.last)
            if waiting := row.waiting():
                partitions = self._of.setdefault(queue_id, {})
                partition = partitions.setdefault(row.partition, Partition(queue_id, row.partition))
                partition.expires_at = row.expires_at
                self._enter(partition, waiting)
        for partition in list(self._of.get(queue_id, {}).values()):
            self.close_if_idle(partition)
            if partition.items:
                self._watch(partition)

    # ── expiry ──────────────────────────────────────────────────────────────────────────────

    def _is_over(self, partition: Partition) -> bool:
        return partition.expires_at <= self._clock.now()

    def _watch(self, partition: Partition) -> None:
        if partition.timer is None:
            left_s = max(0.0, partition.expires_at - self._clock.now())
            loop = asyncio.get_running_loop()
            partition.timer = loop.call_later(min(left_s, _TIMER_MAX_S), self._due, partition)

    def _due(self, partition: Partition) -> None:
        partition.timer = None
        if not partition.items:
            return
        if self._is_over(partition):
            self._expire(partition)
        else:  # there was a put since
            self._watch(partition)

    def _expire(self, partition: Partition) -> None:
        items = self.drain(partition)
        self.close_if_idle(partition)
        self._expired(partition, items)


def _value_bytes(items: Sequence[Item]) -> int:
    """Memory for their values."""
    return sum(item.size for item in items if item.value is not None)


def _unwatch(partition: Partition) -> None:
    timer, partition.timer = partition.timer, None
    if timer is not None:
        timer.cancel()
