"""The same piece of work, asked for by many at once, done once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from homeport.link.messages import LogEntry

T = TypeVar("T")
Emit = Callable[[list[LogEntry]], None]

_HISTORY_MAX = 2_000
"""Log entries a late joiner is shown of what happened before."""


@dataclass(slots=True)
class _Flight:
    task: asyncio.Task[Any] | None = None
    listeners: list[Emit] = field(default_factory=list[Emit])
    history: deque[LogEntry] = field(default_factory=lambda: deque[LogEntry](maxlen=_HISTORY_MAX))

    def emit(self, entries: list[LogEntry]) -> None:
        self.history.extend(entries)
        for listener in list(self.listeners):
            listener(entries)


class Flights:
    """Runs at most one task a key; every asker gets its result, its error and its logs.

    A task whose last asker was cancelled is cancelled too, and waited for.
    """

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}

    async def run(self, key: str, work: Callable[[Emit], Awaitable[T]], emit: Emit) -> T:
        """The result of ``work`` under ``key``: of the one under way, if there is one."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.ensure_future(self._fly(key, flight, work))
        elif flight.history:
            emit(list(flight.history))
        flight.listeners.append(emit)
        task = flight.task
        assert task is not None
        try:
            return cast("T", await asyncio.shield(task))
        finally:
            flight.listeners.remove(emit)
            if not flight.listeners and not task.done():
                self._forget(key, flight)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _fly(self, key: str, flight: _Flight, work: Callable[[Emit], Awaitable[T]]) -> T:
        try:
            return await work(flight.emit)
        finally:
            self._forget(key, flight)

    def _forget(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
