"""Items and partitions of Queues, and their limits. Values are opaque: clients pickle them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from homeport.kernel import ids
from homeport.kernel.errors import ExhaustedError, InvalidError
from homeport.objects.model import Kind
from homeport.storage.database import Step

QUEUE: Final = Kind("queue", ids.QUEUE, "Queue")

_MIB: Final = 1024 * 1024

PARTITIONS_MAX: Final = 100_000
"""In one Queue."""
PARTITION_ITEMS_MAX: Final = 5_000
PARTITION_BYTES_MAX: Final = 64 * _MIB
ITEM_BYTES_MAX: Final = _MIB
KEY_BYTES_MAX: Final = 64
TTL_S: Final = 86400
"""How long a partition lives after the last put, if the client does not say."""
NEXT_ITEMS_MAX: Final = 200
NEXT_BYTES_MAX: Final = 8 * _MIB
"""An answer of ``QueueNextItems`` ends with the item that exceeds this."""


PACK_BYTES: Final = 128 * 1024
"""Items of one put are written as one row up to this size: whoever takes one of them whose value is
not in memory reads them all."""

Run = tuple[int, int]
"""First and last of consecutive numbers: what was put together is mostly taken together."""


@dataclass(slots=True, eq=False)
class Pack:
    """Items of one put that are one row of the database: those from ``first`` to ``last``."""

    first: int
    last: int
    is_lost: bool = False
    """The put failed to commit."""


@dataclass(slots=True, eq=False)
class Item:
    """One item. ``seq`` grows from put to put, over restarts too, and is the entry's id."""

    seq: int
    size: int
    value: bytes | None
    """``None``: it is in the database only."""
    pack: Pack


class Part(NamedTuple):
    """Items of a pack, but not all."""

    pack: Pack
    first: int
    last: int


class Pieces(NamedTuple):
    """Items as the database has them: ``whole`` packs, next to each other, and parts of others."""

    whole: Sequence[Run] = ()
    parts: Sequence[Part] = ()

    def runs(self) -> list[Run]:
        """The items' numbers."""
        return sorted([*self.whole, *((part.first, part.last) for part in self.parts)])


@dataclass(slots=True, eq=False)
class Taken:
    """Items that a get has, and the commit of that."""

    partition: Partition
    items: list[Item]
    pieces: Pieces
    record: Step
    commit: asyncio.Future[None]
    batch: Batch


@dataclass(slots=True, eq=False)
class Batch:
    """Items to be deleted some time after they were taken."""

    taken_at: float
    pieces: Pieces
    size: int


@dataclass(slots=True, eq=False)
class Getter:
    """A get that waits; its future gives ``None`` when its time is over."""

    count: int
    operation: str
    future: asyncio.Future[Taken | None]


@dataclass(slots=True, eq=False)
class Partition:
    """One line of items, and who waits for them, both in order of arrival."""

    queue_id: str
    key: bytes
    items: deque[Item] = field(default_factory=deque[Item])
    size: int = 0
    """Bytes of all items."""
    expires_at: float = 0.0
    """Unix seconds; counts while there are items."""
    cleared_seq: int = 0
    """Items up to here are not given back: the partition was cleared meanwhile."""
    getters: dict[Getter, None] = field(default_factory=dict[Getter, None])
    watchers: set[asyncio.Future[None]] = field(default_factory=set["asyncio.Future[None]"])
    """Scans that wait for the next put."""
    taking: int = 0
    """Gets that have items of it and are not done: they may give them back."""
    last_put: asyncio.Future[None] | None = None
    """The last put's commit, while it is under way."""
    timer: asyncio.TimerHandle | None = None
    """For its expiry."""

    @property
    def is_idle(self) -> bool:
        return not (self.items or self.getters or self.watchers or self.taking)

    def append(self, items: Sequence[Item]) -> None:
        """Put new items at the end."""
        self.items.extend(items)
        self.size += sum(item.size for item in items)

    def take(self, count: int) -> list[Item]:
        """The first items, up to ``count``."""
        if count >= len(self.items):
            return self.drain()
        taken = [self.items.popleft() for _ in range(count)]
        self.size -= sum(item.size for item in taken)
        return taken

    def give_back(self, items: Sequence[Item]) -> None:
        """Put taken items where they were."""
        if not self.items or items[-1].seq < self.items[0].seq:
            self.items.extendleft(reversed(items))
        else:
            self.items = deque(sorted([*items, *self.items], key=lambda item: item.seq))
        self.size += sum(item.size for item in items)

    def drain(self) -> list[Item]:
        """Remove all items."""
        items = list(self.items)
        self.items.clear()
        self.size = 0
        return items

    def after(self, seq: int) -> list[Item]:
        """The next items after that one, as many as fit into one answer."""
        found: list[Item] = []
        size = 0
        for item in self.items:
            if item.seq <= seq:
                continue
            found.append(item)
            size += item.size
            if len(found) >= NEXT_ITEMS_MAX or size > NEXT_BYTES_MAX:
                break
        return found

    def check_room(self, values: Sequence[bytes]) -> None:
        """Raise ``ExhaustedError`` if the partition is full: clients wait, or tell ``Full``."""
        size = sum(map(len, values))
        if len(self.items) + len(values) > PARTITION_ITEMS_MAX:
            raise ExhaustedError(
                f"the queue is full: this partition has {len(self.items)} of "
                f"{PARTITION_ITEMS_MAX} items, and {len(values)} more do not fit"
            )
        if self.size + size > PARTITION_BYTES_MAX:
            raise ExhaustedError(
                f"the queue is full: this partition has {self.size} of {PARTITION_BYTES_MAX} "
                f"bytes, and {size} more do not fit"
            )


def packs_of(first: int, sizes: Sequence[int]) -> list[Pack]:
    """Packs for items of these sizes, the first of which gets that number."""
    packs: list[Pack] = []
    begin = end = first
    total = 0
    for size in sizes:
        if total + size > PACK_BYTES and end > begin:
            packs.append(Pack(begin, end - 1))
            begin, total = end, 0
        total += size
        end += 1
    if end > begin:
        packs.append(Pack(begin, end - 1))
    return packs


def pieces_of(items: Sequence[Item]) -> Pieces:
    """The items, whose numbers ascend, as the database has them."""
    whole: list[Run] = []
    parts: list[Part] = []
    begin = 0
    while begin < len(items):
        first, pack = items[begin].seq, items[begin].pack
        end = begin + pack.last - first + 1  # behind the pack's last item, if none is missing
        if end > len(items) or items[end - 1].seq != pack.last:
            end = begin + 1
            while end < len(items) and items[end].seq == first + end - begin <= pack.last:
                end += 1
        last = first + end - begin - 1
        if (first, last) != (pack.first, pack.last):
            parts.append(Part(pack, first, last))
        elif whole and whole[-1][1] + 1 == first:
            whole[-1] = (whole[-1][0], last)
        else:
            whole.append((first, last))
        begin = end
    return Pieces(whole, parts)


def runs_of(seqs: Iterable[int]) -> list[Run]:
    """The numbers, which ascend, as runs."""
    runs: list[Run] = []
    first = last = -1
    for seq in seqs:
        if seq != last + 1 or first < 0:
            if first >= 0:
                runs.append((first, last))
            first = seq
        last = seq
    if first >= 0:
        runs.append((first, last))
    return runs


def check_key(key: bytes) -> None:
    """Raise ``InvalidError`` for a partition key that is too long."""
    if len(key) > KEY_BYTES_MAX:
        raise InvalidError(
            f"the partition key has {len(key)} bytes; at most {KEY_BYTES_MAX} are possible"
        )


def check_put(key: bytes, values: Sequence[bytes], ttl_s: int) -> None:
    """Raise ``InvalidError`` for a put that can never succeed.

    None of these may be told as RESOURCE_EXHAUSTED: a blocking put would try for ever. Clients
    make a ``RequestSizeError`` of an error that contains ``status = '413'``.
    """
    check_key(key)
    if ttl_s < 0:
        raise InvalidError(f"a partition cannot expire {-ttl_s} s before it is written")
    if len(values) > PARTITION_ITEMS_MAX:
        raise InvalidError(
            f"{len(values)} items at once never fit: a partition holds up to "
            f"{PARTITION_ITEMS_MAX} (status = '413')"
        )
    if sum(map(len, values)) > PARTITION_BYTES_MAX:
        raise InvalidError(
            f"{sum(map(len, values))} bytes at once never fit: a partition holds up to "
            f"{PARTITION_BYTES_MAX // _MIB} MiB (status = '413')"
        )
    if (longest := max(map(len, values), default=0)) > ITEM_BYTES_MAX:
        raise InvalidError(
            f"the item has {longest} bytes when pickled; a Queue takes items up to "
            f"{ITEM_BYTES_MAX // _MIB} MiB (status = '413')"
        )


def parse_entry_id(text: str) -> int:
    """The ``seq`` of an entry id; 0, the beginning, for an empty one. Raises ``InvalidError``."""
    if not text:
        return 0
    if len(text) > 18 or not text.isascii() or not text.isdigit():
        raise InvalidError(f"{text[:40]!r} is not the id of a queue entry")
    return int(text)
