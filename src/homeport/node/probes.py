"""When a sandbox is ready: its port is listened on, or a command in it succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from homeport.kernel.errors import HomeportError
from homeport.link.messages import ProbeRef
from homeport.node.runtime.port import Container

_LISTENING: Final = "0A"
"""``TCP_LISTEN`` in ``/proc/net/tcp``."""


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
        return is_listening(self._container.pid, self._ref.tcp_port)


def is_listening(pid: int, port: int) -> bool:
    """Whether a process in the network of process ``pid`` listens on a TCP port."""
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state = line.split(maxsplit=4)[:4]
            if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                return True
    return False
