"""Log entries and what can be asked about them."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

STDOUT: Final = 1
STDERR: Final = 2
SYSTEM: Final = 3

TASK_ACTIVE: Final = 4
"""``TASK_STATE_ACTIVE`` of the client's protocol: it takes inputs."""
TASK_COMPLETED: Final = 5
"""``TASK_STATE_COMPLETED`` of the client's protocol."""

FETCH_ENTRIES_MAX: Final = 20_000
"""Entries in one answer from history (the client never asks for more)."""
FETCH_BYTES_MAX: Final = 64 * 1024 * 1024
"""Text in one answer from history: keeps it below the client's message limit."""
RANGE_S_MAX: Final = 35 * 86400
"""Longest time range of one question, the client's own limit."""
BUCKETS_MAX: Final = 20_000
"""Buckets in one count."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A piece of output. ``id`` grows with arrival; ``fd`` is one of the constants above.

    ``root_function_id`` is the function a parametrized variant belongs to.
    """

    id: int
    app_id: str
    task_id: str
    function_id: str
    root_function_id: str
    image_id: str
    call_id: str
    input_id: str
    fd: int
    time_ns: int
    data: str


class Source(NamedTuple):
    """Which message of a node some entries came with: it is sent again until it is recorded."""

    origin: str
    """One life of a node."""
    seq: int
    """Grows from message to message."""


class Filter(msgspec.Struct, frozen=True):
    """Which entries of an app; empty fields do not restrict."""

    task_id: str = ""
    function_id: str = ""
    variant_id: str = ""
    """Exactly this variant of ``function_id``."""
    call_id: str = ""
    input_id: str = ""
    fd: int = 0
    search: str = ""
    without_builds: bool = False
    """Leave out what builds of images printed."""

    def matches(self, entry: Entry) -> bool:
        return (
            (not self.task_id or entry.task_id == self.task_id)
            and (not self.call_id or entry.call_id == self.call_id)
            and (not self.input_id or entry.input_id == self.input_id)
            and (not self.fd or entry.fd == self.fd)
            and self._matches_function(entry)
            and not (self.without_builds and entry.image_id)
            and (not self.search or self.search in entry.data)
        )

    def _matches_function(self, entry: Entry) -> bool:
        if self.variant_id:
            return entry.function_id == self.variant_id
        if self.function_id:
            return self.function_id in (entry.function_id, entry.root_function_id)
        return True


class TaskState(msgspec.Struct, frozen=True):
    """A task's progress for spinners (``state`` as in the client's protocol); not kept."""

    task_id: str
    function_id: str
    state: int


class QueueProgress(msgspec.Struct, frozen=True):
    """``position`` of ``length`` inputs of a function are through; not kept."""

    function_id: str
    position: int
    length: int
    description: str


class Done(msgspec.Struct, frozen=True):
    """No more entries will come."""


Ephemeral = TaskState | QueueProgress
Event = list[Entry] | Ephemeral | Done


class Bucket(msgspec.Struct, frozen=True):
    """Entries per kind from ``start`` (Unix seconds) on."""

    start: int
    stdout: int
    stderr: int
    system: int


class TaskRef(msgspec.Struct, frozen=True):
    """Where a task's output is, and whether it has ended."""

    app_id: str
    finished: bool
