"""Taken items that are kept for a while, and then deleted."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

from homeport.queues.model import Batch, Part, Pieces, Run
from homeport.storage.operations import RETENTION_S

BYTES_MAX: Final = 256 * 1024 * 1024
"""Disk that taken items may occupy beyond the least time."""
LEAST_S: Final = 30.0
"""A client repeats a get that it got no answer to within a second or two of reaching the server."""
_TOGETHER_S: Final = 5.0
"""What comes due within that time is deleted together."""


class TakenItems:
    """What to delete when.

    ``delete`` is given runs of whole packs, and packs of which parts were taken: they go if
    nothing of them is left.
    """

    def __init__(self, delete: Callable[[Sequence[Run], Sequence[Run]], object]) -> None:
        self._delete = delete
        self._batches: deque[Batch] = deque()
        self._bytes = 0
        self._parts: Counter[int] = Counter()  # by the pack's first item
        self._timer: asyncio.TimerHandle | None = None

    def add(self, pieces: Pieces, size: int) -> Batch:
        """These have just been taken; ``forget`` the batch if they were not after all."""
        batch = Batch(asyncio.get_running_loop().time(), pieces, size)
        self._batches.append(batch)
        self._bytes += size
        for part in pieces.parts:
            self._parts[part.pack.first] += 1
        if self._timer is None:
            self._arm()
        return batch

    def forget(self, batch: Batch) -> None:
        """What is in it is not to be deleted."""
        for part in batch.pieces.parts:
            self._is_last(part)
        self._bytes -= batch.size
        batch.pieces, batch.size = Pieces(), 0

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
        whole: list[Run] = []
        rests: list[Run] = []
        while self._batches and now - self._batches[0].taken_at >= self._keep_s():
            batch = self._batches.popleft()
            self._bytes -= batch.size
            whole.extend(batch.pieces.whole)
            for part in batch.pieces.parts:
                if self._is_last(part):
                    rests.append((part.pack.first, part.pack.last))
        if whole or rests:
            self._delete(whole, rests)
        self._timer = None
        if self._batches:
            self._arm()

    def _is_last(self, part: Part) -> bool:
        """Whether no other part of its pack is kept now that this one is not."""
        self._parts[part.pack.first] -= 1
        if self._parts[part.pack.first]:
            return False
        del self._parts[part.pack.first]
        return True
