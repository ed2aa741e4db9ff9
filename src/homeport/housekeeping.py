"""Keeps what the installation stores within its limits: old logs, expired blobs, unused files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from homeport.storage.contents import ContentStore

log = structlog.get_logger(__name__)


class Prunable(Protocol):
    """A feature whose records age."""

    async def prune(self) -> int:
        """Delete what is beyond the feature's limits; how many records."""
        ...


Contents = Callable[[], Awaitable[set[str]]]
"""Hashes of the file store's contents that a feature refers to."""


class Housekeeping:
    """Runs the features' ``prune`` and then removes contents that no feature refers to.

    ``contents`` must name every feature that keeps references into ``files``: what none of them
    claims, and nobody asked for within the store's grace period, is deleted.
    """

    def __init__(
        self,
        files: ContentStore,
        *,
        prunable: Sequence[Prunable],
        contents: Sequence[Contents],
        interval_s: float,
    ) -> None:
        self._files = files
        self._prunable = prunable
        self._contents = contents
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="housekeeping")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def once(self) -> None:
        """One round. If a feature fails to name its contents, no file is removed."""
        records = 0
        for feature in self._prunable:
            records += await feature.prune()
        live: set[str] = set()
        for contents in self._contents:
            live |= await contents()
        files = await self._files.sweep(live)
        if records or files:
            log.info("housekeeping", records=records, files=files)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.once()
            except Exception:
                log.exception("housekeeping failed; it is tried again")
