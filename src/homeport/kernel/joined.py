"""A cache whose misses are computed once, however many ask at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class JoinedCache(Generic[K, V]):
    """Values by key, at most ``size_max`` of them (the least recently used goes first).

    Failures are not kept: the next caller tries again. A caller that is cancelled does not end the
    computation that others wait for.
    """

    def __init__(self, size_max: int = 1_024) -> None:
        self._size_max = size_max
        self._tasks: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, compute: Callable[[], Awaitable[V]]) -> V:
        """The value of ``key``, computed if it is not here."""
        task = self._tasks.pop(key, None)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.ensure_future(_run(compute))
            task.add_done_callback(_retrieve)
            while len(self._tasks) >= self._size_max:
                self._tasks.pop(next(iter(self._tasks)))
        self._tasks[key] = task
        return await asyncio.shield(task)


async def _run(compute: Callable[[], Awaitable[V]]) -> V:
    return await compute()


def _retrieve(task: asyncio.Task[V]) -> None:
    if not task.cancelled():
        task.exception()  # callers that still wait raise it; if none does, it is of no interest
