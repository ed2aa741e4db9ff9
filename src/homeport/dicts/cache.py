"""Recently used entries in memory, so that most operations ask no disk."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from homeport.dicts.model import Entry

BYTES_MAX: Final = 64 * 1024 * 1024
"""Memory for keys and values of all Dicts together."""
VALUE_BYTES_MAX: Final = 64 * 1024
"""Longer values are read from the disk each time."""
_OVERHEAD_BYTES: Final = 400
_TRIES: Final = 16

CacheKey = tuple[int, bytes]


@dataclass(slots=True, eq=False)
class Slot:
    """What is known about one key: its entry, or that there is none."""

    entry: Entry | None
    pending: asyncio.Future[None] | None = None
    """The commit of what the slot says; it may not be told to anybody before."""

    @property
    def is_committing(self) -> bool:
        return self.pending is not None and not self.pending.done()

    @property
    def cost(self) -> int:
        if self.entry is None:
            return _OVERHEAD_BYTES
        return _OVERHEAD_BYTES + len(self.entry.key) + len(self.entry.value or b"")


class EntryCache:
    """Slots by key, the least recently used ones dropped first; what is being committed stays."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._slots: OrderedDict[CacheKey, Slot] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def get(self, key: CacheKey) -> Slot | None:
        slot = self._slots.get(key)
        if slot is not None:
            self._slots.move_to_end(key)
        return slot

    def put(self, key: CacheKey, slot: Slot) -> None:
        """Keep ``slot``, without the value if that is long."""
        entry = slot.entry
        if entry is not None and entry.value is not None and len(entry.value) > VALUE_BYTES_MAX:
            slot.entry = entry._replace(value=None)
        old = self._slots.pop(key, None)
        if old is not None:
            self._bytes -= old.cost
        self._slots[key] = slot
        self._bytes += slot.cost
        self._shrink()

    def _shrink(self) -> None:
        for _ in range(_TRIES):
            if self._bytes <= self._bytes_max or len(self._slots) <= 1:
                return
            key, oldest = next(iter(self._slots.items()))
            if oldest.is_committing:
                self._slots.move_to_end(key)
            else:
                del self._slots[key]
                self._bytes -= oldest.cost
