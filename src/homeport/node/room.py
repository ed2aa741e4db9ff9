"""Keeps a node's image layers within their bound."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import structlog

from homeport.node.layers import LayerStore

log = structlog.get_logger(__name__)

SHARE: Final = 3
"""Without a setting layers may take this part of their disk: one third."""
_AFTER: Final = 0.9
"""How full, of its bound, the store is after layers were deleted: not one layer at a time."""


def default_bound(root: Path) -> int:
    """Bytes of layers that a store at ``root`` keeps by itself."""
    return shutil.disk_usage(root).total // SHARE


class LayerRoom:
    """Deletes layers when there are too many, and when told to; ``on_dropped`` hears which.

    What containers and builds use is never deleted.
    """

    def __init__(
        self, layers: LayerStore, bytes_max: int, on_dropped: Callable[[list[str]], object]
    ) -> None:
        self._layers = layers
        self._bytes_max = bytes_max
        self._on_dropped = on_dropped
        self._task: asyncio.Task[None] | None = None
        layers.on_growth = self.look

    def keys(self) -> list[str]:
        """The layers there are."""
        return self._layers.keys()

    def look(self) -> None:
        """See whether the layers still fit, in the background."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._make_room())

    async def drop(self, keys: Sequence[str], *, others: bool = False) -> None:
        """Delete ``keys``, or everything but them, as far as it is not in use."""
        chosen: Iterable[str] = keys
        if others:
            chosen = sorted(set(self._layers.keys()) - set(keys))
        self._report(await self._layers.drop(chosen))

    async def stop(self) -> None:
        """Let what is under way end."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _make_room(self) -> None:
        if await asyncio.to_thread(self._layers.size_bytes) <= self._bytes_max:
            return
        chosen = self._layers.surplus(int(self._bytes_max * _AFTER))
        dropped = await self._layers.drop(chosen)
        if dropped:
            log.info("image layers were deleted to make room", layers=len(dropped))
        self._report(dropped)

    def _report(self, dropped: list[str]) -> None:
        if dropped:
            self._on_dropped(dropped)
