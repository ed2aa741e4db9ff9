"""Counts of one function's containers, kept up to date as they change.

A decision about a function must not cost more the more containers it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple, Protocol


class TaskStatus(Enum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class Shape(NamedTuple):
    """What is counted of a container."""

    status: TaskStatus
    is_outdated: bool
    is_stalled: bool
    held: int
    """Inputs given to it and not finished."""
    takes_more: bool
    """Whether it takes further inputs in its life."""


class Counted(Protocol):
    """A container that is counted."""

    counted: Shape | None
    """As what it is counted now."""

    @property
    def shape(self) -> Shape: ...


class Tally:
    """``starting``, ``ready`` and ``stalled`` leave outdated containers out; no number has those
    that are told to stop, but ``held``.

    ``idle_anywhere`` is shared by all functions: containers without inputs, the longest idle first.
    """

    def __init__(self, idle_anywhere: dict[Counted, None]) -> None:
        self.starting = 0
        self.ready = 0
        self.stalled = 0
        self.running = 0
        """Inputs in containers that serve and are not stalled."""
        self.held = 0
        """Inputs in any container."""
        self.outdated: dict[Counted, None] = {}
        self._idle_anywhere = idle_anywhere
        self._present: dict[int, dict[Counted, None]] = {}
        self._past: dict[int, dict[Counted, None]] = {}
        """Containers that may take inputs, by how many they hold; in each the longest so first."""

    def update(self, task: Counted) -> None:
        """The container is new, or something of it changed."""
        shape = task.shape
        if shape == task.counted:
            return
        self.drop(task)
        task.counted = shape
        self._count(task, shape, 1)

    def drop(self, task: Counted) -> None:
        """The container is gone."""
        if task.counted is not None:
            self._count(task, task.counted, -1)
            task.counted = None

    def _count(self, task: Counted, shape: Shape, sign: int) -> None:
        self.held += sign * shape.held
        if shape.status is TaskStatus.STOPPING:
            return
        if shape.is_outdated:
            _put(self.outdated, task, sign)
        if shape.status is TaskStatus.STARTING:
            self.starting += 0 if shape.is_outdated else sign
            return
        if not shape.is_outdated:
            self.ready += sign
            self.stalled += sign * shape.is_stalled
        if shape.is_stalled:
            return
        self.running += sign * shape.held
        if not shape.takes_more:
            return
        levels = self._past if shape.is_outdated else self._present
        level = levels.setdefault(shape.held, {})
        _put(level, task, sign)
        if not level:
            del levels[shape.held]
        if not shape.held:
            _put(self._idle_anywhere, task, sign)

    @property
    def has_idle(self) -> bool:
        """Whether a container waits for inputs."""
        return 0 in self._present or 0 in self._past

    def idle(self) -> Iterator[Counted]:
        """Containers without inputs, the longest idle first, outdated ones before the others."""
        yield from self._past.get(0, ())
        yield from self._present.get(0, ())

    def least_loaded(self, below: int) -> Counted | None:
        """A container with the fewest inputs, fewer than ``below``: rather one of the present
        version, and the one that last had more (so that the others become superfluous)."""
        for levels in (self._present, self._past):
            held = min(levels, default=below)
            if held < below:
                return next(reversed(levels[held]))
        return None

    def loaded(self, above: int) -> Iterator[Counted]:
        """Containers with more than ``above`` inputs."""
        for levels in (self._present, self._past):
            for held, level in levels.items():
                if held > above:
                    yield from level


def _put(group: dict[Counted, None], task: Counted, sign: int) -> None:
    if sign > 0:
        group[task] = None
    else:
        del group[task]
