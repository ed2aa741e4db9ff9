"""Ends a build step that fills the disk before the disk is full."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from homeport.node.builder.errors import BuildError
from homeport.node.layers import tree_size

T = TypeVar("T")

_LOOK_S = 1.0
"""Between two looks: no event tells that a disk fills, and a second writes a few GB at most."""
_FLOOR_BYTES = 1024**3
_FLOOR_SHARE = 50
_CULPRIT_BYTES = 64 * 1024**2
"""A step that wrote less is not why the disk is full."""


@dataclass(frozen=True, slots=True)
class DiskGuard:
    """Keeps ``floor_bytes`` of a disk free of what build steps write."""

    free_bytes: Callable[[], int]
    floor_bytes: int
    look_s: float = _LOOK_S

    async def run(self, upper: Path, work: Callable[[], Awaitable[T]]) -> T:
        """``work``, which writes below ``upper``. Raises ``BuildError`` and cancels it when the
        disk runs out of room.
        """
        if self.free_bytes() < self.floor_bytes:
            raise BuildError(self._full())
        running = asyncio.ensure_future(work())
        try:
            while True:
                done, _ = await asyncio.wait([running], timeout=self.look_s)
                if done:
                    return running.result()
                if self.free_bytes() < self.floor_bytes:
                    written = await asyncio.to_thread(_written, upper)
                    if written > _CULPRIT_BYTES:
                        raise BuildError(f"it wrote {written // 2**20} MiB, and {self._full()}")
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait([running])

    def _full(self) -> str:
        free, floor = self.free_bytes() // 2**20, self.floor_bytes // 2**20
        return (
            f"the node's disk has {free} MiB left, of which builds must leave {floor} MiB: free "
            "some (homeport image prune --caches), or let layers and caches have less "
            "(layers_bytes_max, caches_bytes_max)"
        )


def guard_of(root: Path) -> DiskGuard:
    """The guard of the disk that ``root`` is on: it keeps 1 GiB free, or 2 % of a small disk."""
    total = shutil.disk_usage(root).total
    return DiskGuard(lambda: shutil.disk_usage(root).free, min(_FLOOR_BYTES, total // _FLOOR_SHARE))


def _written(upper: Path) -> int:
    try:
        return tree_size(upper)
    except OSError:  # it changes while we look
        return _CULPRIT_BYTES + 1
