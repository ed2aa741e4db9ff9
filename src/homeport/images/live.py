"""A build under way: its log so far and who waits for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, Final

from homeport.images.model import ImageRecord
from homeport.link.messages import LogEntry

LOG_ENTRIES_MAX: Final = 20_000
LOG_CHARACTERS_MAX: Final = 8 * 1024 * 1024
"""What is kept of one build's log; the oldest goes first."""
PATIENCE_S: Final = 10.0
"""Clients follow a build in requests of 55 s, the next at once: none for that long means that they
were interrupted."""


class LiveBuild:
    """The log of one build by growing index, and its end.

    A build that nobody has followed for ``patience_s`` seconds is cancelled (``is_abandoned``).
    """

    def __init__(
        self,
        image_id: str,
        build_id: str,
        sink: Callable[[list[LogEntry]], None] | None = None,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.image_id = image_id
        self.build_id = build_id
        self.task: asyncio.Task[None] | None = None
        self.outcome: ImageRecord | None = None
        """Set once, when the build has ended and is recorded."""
        self._sink = sink
        self._entries: list[LogEntry] = []
        self._first = 0
        self._characters = 0
        self._changed = asyncio.Event()
        self.is_abandoned = False
        self._patience_s = patience_s
        self._patience: asyncio.TimerHandle | None = None
        self._followers = 0
        self._is_ending = False

    def launch(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the build; someone has to follow it soon."""
        self.task = asyncio.create_task(work)
        self._lose_patience()

    @contextmanager
    def followed(self) -> Generator[None]:
        """While inside, someone waits for the build."""
        self._followers += 1
        self._keep_patience()
        try:
            yield
        finally:
            self._followers -= 1
            if not self._followers:
                self._lose_patience()

    def ending(self) -> None:
        """The build is over and about to be recorded: it can no longer be cancelled."""
        self._is_ending = True
        self._keep_patience()

    def _lose_patience(self) -> None:
        if not self._is_ending:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(self._patience_s, self._abandon)

    def _keep_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _abandon(self) -> None:
        if self.task is not None:
            self.is_abandoned = True
            self.task.cancel()

    def append(self, entries: list[LogEntry]) -> None:
        """Add output, in order."""
        self._entries.extend(entries)
        self._characters += sum(len(entry.data) for entry in entries)
        self._trim()
        if self._sink is not None:
            self._sink(entries)
        self._wake()

    def finish(self, outcome: ImageRecord) -> None:
        """The build ended so."""
        self.outcome = outcome
        self._wake()

    @property
    def entries(self) -> list[LogEntry]:
        """The log as far as it is kept."""
        return list(self._entries)

    def after(self, index: int) -> tuple[list[LogEntry], int]:
        """The entries from ``index`` on, and the index after them."""
        end = self._first + len(self._entries)
        return self._entries[max(0, index - self._first) :], end

    async def changed(self, timeout_s: float) -> None:
        """Until there is more (or the end), at most ``timeout_s``."""
        event = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _trim(self) -> None:
        drop = max(0, len(self._entries) - LOG_ENTRIES_MAX)
        characters = self._characters - sum(len(entry.data) for entry in self._entries[:drop])
        while characters > LOG_CHARACTERS_MAX and drop < len(self._entries) - 1:
            characters -= len(self._entries[drop].data)
            drop += 1
        if drop:
            del self._entries[:drop]
            self._first += drop
            self._characters = characters
