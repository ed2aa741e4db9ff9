"""When a sandbox is ready: its port is listened on, or a command in it succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from homeport.kernel.errors import HomeportError
from homeport.link.messages import ProbeRef
from homeport.node.runtime.port import Container


class Probe:
    """Tries until it succeeds for the first time."""

    def __init__(
        self,
        ref: ProbeRef,
        container: Container,
        run: Callable[[list[str]], Awaitable[int]],
    ) -> None:
        self._ref = ref
        self._container = container
        self._run = run

    async def succeeded(self) -> None:
        """Returns when it is so; cancel it when the sandbox ends."""
        # Neither a program's "ready" nor a listening port is an event for somebody outside.
        while not await self._try():  # noqa: ASYNC110
            await asyncio.sleep(self._ref.interval_ms / 1000)

    async def _try(self) -> bool:
        if self._ref.command:
            try:
                return await self._run(self._ref.command) == 0
            except HomeportError:
                return False
        return await self._container.is_listening(self._ref.tcp_port)
