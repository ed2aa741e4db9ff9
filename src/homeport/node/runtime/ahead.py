"""How many gVisor containers wait to be used (``prepared.py``), and their coming and going."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from homeport.node.runtime.port import ContainerStartError, RuntimeUnavailableError
from homeport.node.runtime.prepared import Prepared
from homeport.node.stock import CALM_S, Stock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_FIRST_S: Final = 0.05
"""So much later than a start the next one is prepared: the started one comes first."""


class Ahead:
    """As many containers that wait as were lately asked for at once, up to ``most`` in all."""

    def __init__(
        self,
        most: int,
        prepare: Callable[[str], Awaitable[Prepared]],
        discard: Callable[[Prepared], Awaitable[None]],
    ) -> None:
        self._most = most
        self._prepare = prepare
        self._discard = discard
        self._stocks = {name: Stock(0, most) for name in ("nat", "none")}
        self._ready = {name: deque[Prepared]() for name in self._stocks}
        self._asked = list(self._stocks)
        """Networks, the one that was asked for last at the end."""
        self._filling: asyncio.Task[None] | None = None
        self._calm: asyncio.TimerHandle | None = None
        self._discarding: set[asyncio.Future[None]] = set()
        self._changed = asyncio.Event()
        self._is_closed = False

    def take(self, network: str) -> Prepared | None:
        """One that is ready, the caller's from now on."""
        stock = self._stocks.get(network)
        if stock is None or self._is_closed or not self._most:
            return None
        loop = asyncio.get_running_loop()
        ready = self._ready[network]
        found: Prepared | None = None
        if ready:
            found = ready.popleft()
            loop.remove_reader(found.outer_fd)
            stock.used(loop.time())
        else:
            stock.missed(loop.time())
        self._wake(network)
        return found

    async def prepare(self, network: str) -> None:
        """Have one for ``network`` wait, whatever was asked for; until it does, or could not."""
        self._stocks[network].want()
        self._wake(network)
        while not self._ready[network] and self._filling is not None:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """End all; those that are being prepared too. Idempotent."""
        self._is_closed = True
        if self._calm is not None:
            self._calm.cancel()
        if self._filling is not None:
            await asyncio.wait([self._filling])
        for ready in self._ready.values():
            while ready:
                self._drop(ready.popleft())
        if self._discarding:
            await asyncio.wait(self._discarding)

    def _wake(self, network: str) -> None:
        self._asked.remove(network)
        self._asked.append(network)
        loop = asyncio.get_running_loop()
        if self._calm is None:
            self._calm = loop.call_later(CALM_S, self._calm_down)
        if self._filling is None:
            self._filling = loop.create_task(self._fill())

    async def _fill(self) -> None:
        try:
            while (network := self._missing()) is not None:
                await asyncio.sleep(_FIRST_S)
                prepared = await self._prepare(network)
                asyncio.get_running_loop().add_reader(prepared.outer_fd, self._on_end, prepared)
                self._ready[network].append(prepared)
                self._changed.set()
        except (ContainerStartError, RuntimeUnavailableError, OSError) as error:
            log.warning("no container could be prepared ahead", error=str(error))
        finally:
            self._filling = None
            self._changed.set()

    def _missing(self) -> str | None:
        """The network of the next one to prepare; what was not asked for so lately makes way."""
        for place, name in reversed(list(enumerate(self._asked))):
            if self._is_closed or len(self._ready[name]) >= self._stocks[name].wanted:
                continue
            if sum(map(len, self._ready.values())) < self._most:
                return name
            for other in self._asked[:place]:
                if self._ready[other]:
                    self._drop(self._ready[other].popleft())
                    return name
        return None

    def _on_end(self, prepared: Prepared) -> None:
        """One has ended by itself."""
        self._ready[prepared.network].remove(prepared)
        self._drop(prepared)

    def _drop(self, prepared: Prepared) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(prepared.outer_fd)
        task = asyncio.ensure_future(self._discard(prepared))
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)

    def _calm_down(self) -> None:
        loop = asyncio.get_running_loop()
        again_s = [stock.calm(loop.time()) for stock in self._stocks.values()]
        wait_s = min((found for found in again_s if found), default=0.0)
        self._calm = loop.call_later(wait_s, self._calm_down) if wait_s else None
        for name, stock in self._stocks.items():
            while len(self._ready[name]) > stock.wanted:
                self._drop(self._ready[name].popleft())
