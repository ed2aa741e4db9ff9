"""One app's output in memory: the newest entries, and who waits for more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from homeport.logs.model import TASK_COMPLETED, Entry, Ephemeral, TaskState

RING_ENTRIES_MAX: Final = 4_096
RING_BYTES_MAX: Final = 1024 * 1024
"""Committed entries kept per app for readers that keep up; others read the database."""
EPHEMERAL_MAX: Final = 256
"""Progress events kept per reader; older ones are superseded anyway."""
FINISHED_TASKS_MAX: Final = 1_024


class Reader:
    """Someone who follows the stream. ``wake`` is set when there may be something new."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.ephemeral: deque[Ephemeral] = deque(maxlen=EPHEMERAL_MAX)

    def take_ephemeral(self) -> list[Ephemeral]:
        events = list(self.ephemeral)
        self.ephemeral.clear()
        return events


class AppStream:
    """The ring of one app.

    Readers are given what is committed: what is not is sent again by its node if the server dies,
    and would be read twice.

    Invariant: every entry with an id above ``floor`` is in the ring, every entry up to ``floor``
    is committed. So a reader whose cursor is at or above ``floor`` needs no database.
    """

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self.last_id = floor
        self.committed_id = floor
        self.readers: set[Reader] = set()
        self.task_states: dict[str, TaskState] = {}
        self.finished_tasks: dict[str, None] = {}
        self.last_write: asyncio.Future[None] | None = None
        self._ring: deque[Entry] = deque()
        self._bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether it can be dropped from memory without loss."""
        return not self.readers and not self.task_states and self.committed_id == self.last_id

    @property
    def is_behind(self) -> bool:
        """Whether there are entries that readers are not given yet."""
        return self.committed_id < self.last_id

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries (ids ascending)."""
        self._ring.extend(entries)
        self._bytes += sum(len(entry.data) for entry in entries)
        self.last_id = entries[-1].id
        self._trim()

    def committed(self, id: int) -> None:
        """Entries up to ``id`` are in the database: the readers are woken."""
        self.committed_id = max(self.committed_id, id)
        self._trim()
        self.wake()

    def after(self, id: int, limit: int) -> list[Entry]:
        """The first ``limit`` committed entries after ``id``, which must not be below ``floor``."""
        found: list[Entry] = []
        for entry in reversed(self._ring):
            if entry.id <= id:
                break
            if entry.id <= self.committed_id:
                found.append(entry)
        found.reverse()
        return found[:limit]

    def publish(self, event: Ephemeral) -> None:
        """Pass a progress event to the readers of this moment."""
        if isinstance(event, TaskState):
            if event.state == TASK_COMPLETED:
                self.task_states.pop(event.task_id, None)
                self.finished_tasks[event.task_id] = None
                if len(self.finished_tasks) > FINISHED_TASKS_MAX:
                    del self.finished_tasks[next(iter(self.finished_tasks))]
            else:
                self.task_states[event.task_id] = event
        for reader in self.readers:
            reader.ephemeral.append(event)
            reader.wake.set()

    def wake(self) -> None:
        for reader in self.readers:
            reader.wake.set()

    def _trim(self) -> None:
        while self._ring and (len(self._ring) > RING_ENTRIES_MAX or self._bytes > RING_BYTES_MAX):
            if self._ring[0].id > self.committed_id:
                return  # not in the database yet: the ring is its only place
            entry = self._ring.popleft()
            self._bytes -= len(entry.data)
            self.floor = entry.id
