"""Taken items that are kept for a while, and then deleted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from homeport.queues.model import Batch, Run
from homeport.storage.operations import RETENTION_S

BYTES_MAX: Final = 256 * 1024 * 1024
"""Disk that taken items may occupy beyond the least time."""
LEAST_S: Final = 30.0
"""A client repeats a get that it got no answer to within a second or two of reaching the server."""
_TOGETHER_S: Final = 5.0
"""What comes due within that time is deleted together."""


class TakenItems:
    """What to delete when. ``delete`` is given the items' numbers in runs."""

    def __init__(self, delete: Callable[[Sequence[Run]], object]) -> None:
        self._delete = delete
        self._batches: deque[Batch] = deque()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, runs: list[Run], size: int) -> Batch:
        """These have just been taken; change the batch's runs if some were not after all."""
        batch = Batch(asyncio.get_running_loop().time(), runs, size)
        self._batches.append(batch)
        self._bytes += size
        if self._timer is None:
            self._arm()
        return batch

    def stop(self) -> None:
        """Delete no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _keep_s(self) -> float:
        return LEAST_S if self._bytes > BYTES_MAX else RETENTION_S

    def _arm(self) -> None:
        due = self._batches[0].taken_at + self._keep_s() + _TOGETHER_S
        self._timer = asyncio.get_running_loop().call_at(due, self._purge)

    def _purge(self) -> None:
        now = asyncio.get_running_loop().time()
        gone: list[Run] = []
        while self._batches and now - self._batches[0].taken_at >= self._keep_s():
            batch = self._batches.popleft()
            self._bytes -= batch.size
            gone.extend(batch.runs)
        if gone:
            self._delete(gone)
        self._timer = None
        if self._batches:
            self._arm()
