"""How much is made before anybody asks for it, and its coming and going."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

import structlog

from homeport.node.runtime.port import ContainerStartError, RuntimeUnavailableError
from homeport.node.stock import CALM_S, Stock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_KEYS_MAX: Final = 64
"""Kinds of which something may wait; those that were asked for last."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Ahead(Generic[K, T]):
    """As many things that wait as were lately asked for at once, up to ``most`` in all.

    What is asked for is named by a key; the next of it is made ``pause_s`` after that: who asked
    comes first. ``ends`` gives a descriptor that becomes readable when a thing has ended by itself.
    """

    def __init__(
        self,
        most: int,
        prepare: Callable[[K], Awaitable[T]],
        discard: Callable[[T], Awaitable[None]],
        *,
        pause_s: float,
        ends: Callable[[T], int] | None = None,
    ) -> None:
        self._most = most
        self._prepare = prepare
        self._discard = discard
        self._pause_s = pause_s
        self._ends = ends
        self._stocks: dict[K, Stock] = {}
        self._ready: dict[K, deque[T]] = {}
        """By key, the one that was asked for last at the end."""
        self._filling: asyncio.Task[None] | None = None
        self._calm: asyncio.TimerHandle | None = None
        self._discarding: set[asyncio.Future[None]] = set()
        self._changed = asyncio.Event()
        self._is_closed = False

    def take(self, key: K) -> T | None:
        """One that is ready, the caller's from now on."""
        found = self.pop(key)
        if found is not None:
            self._unwatch(found)
        self.note(key, was_ready=found is not None)
        return found

    def pop(self, key: K) -> T | None:
        """As ``take``, for any thread and what has no ``ends``; ``note`` belongs to it."""
        with contextlib.suppress(KeyError, IndexError):
            return self._ready[key].popleft()
        return None

    def note(self, key: K, *, was_ready: bool) -> None:
        """Somebody has asked for one, and there was one or there was none."""
        if self._is_closed or not self._most:
            return
        stock = self._asked(key)
        now = asyncio.get_running_loop().time()
        if was_ready:
            stock.used(now)
        else:
            stock.missed(now)
        self._wake()

    async def prepare(self, key: K) -> None:
        """Have one wait, whatever was asked for; until it does, or could not."""
        self._asked(key).want()
        self._wake()
        while not self._ready.get(key) and self._filling is not None:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """End all; those that are being prepared too. Idempotent."""
        self._is_closed = True
        if self._calm is not None:
            self._calm.cancel()
        if self._filling is not None:
            await asyncio.wait([self._filling])
        for key in list(self._stocks):
            self._forget(key)
        if self._discarding:
            await asyncio.wait(self._discarding)

    def _asked(self, key: K) -> Stock:
        if key not in self._stocks:
            self._stocks[key] = Stock(0, self._most)
            if len(self._stocks) > _KEYS_MAX:
                self._forget(next(iter(self._ready)))
        self._ready[key] = self._ready.pop(key, None) or deque()
        return self._stocks[key]

    def _wake(self) -> None:
        loop = asyncio.get_running_loop()
        if self._calm is None:
            self._calm = loop.call_later(CALM_S, self._calm_down)
        if self._filling is None:
            self._filling = loop.create_task(self._fill())

    async def _fill(self) -> None:
        try:
            while (key := self._missing()) is not None:
                await asyncio.sleep(self._pause_s)
                await self._add(key)
                self._changed.set()
        finally:
            self._filling = None
            self._changed.set()

    async def _add(self, key: K) -> None:
        try:
            thing = await self._prepare(key)
        except (ContainerStartError, RuntimeUnavailableError, OSError) as error:
            log.warning("nothing could be prepared ahead", error=str(error))
            self._forget(key)
            return
        if self._ends is not None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._ends(thing), self._on_end, key, thing)
        if key in self._ready:
            self._ready[key].append(thing)
        else:
            self._drop(thing)

    def _missing(self) -> K | None:
        """Of what to prepare the next one; what was not asked for so lately makes way."""
        keys = list(self._ready)
        for place, key in reversed(list(enumerate(keys))):
            if self._is_closed or len(self._ready[key]) >= self._stocks[key].wanted:
                continue
            if sum(map(len, self._ready.values())) < self._most:
                return key
            for other in keys[:place]:
                if self._drop_one(other):
                    return key
        return None

    def _on_end(self, key: K, thing: T) -> None:
        """One has ended by itself."""
        self._ready[key].remove(thing)
        self._drop(thing)

    def _unwatch(self, thing: T) -> None:
        if self._ends is not None:
            asyncio.get_running_loop().remove_reader(self._ends(thing))

    def _drop_one(self, key: K) -> bool:
        found = self.pop(key)
        if found is not None:
            self._drop(found)
        return found is not None

    def _drop(self, thing: T) -> None:
        self._unwatch(thing)
        task = asyncio.ensure_future(self._discard(thing))
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)

    def _forget(self, key: K) -> None:
        """Nobody asks for it any more."""
        while self._drop_one(key):
            pass
        self._stocks.pop(key, None)
        self._ready.pop(key, None)

    def _calm_down(self) -> None:
        loop = asyncio.get_running_loop()
        again_s = [stock.calm(loop.time()) for stock in self._stocks.values()]
        wait_s = min((found for found in again_s if found), default=0.0)
        self._calm = loop.call_later(wait_s, self._calm_down) if wait_s else None
        for key, stock in list(self._stocks.items()):
            if not stock.wanted:
                self._forget(key)
            while len(self._ready.get(key, ())) > stock.wanted and self._drop_one(key):
                pass
