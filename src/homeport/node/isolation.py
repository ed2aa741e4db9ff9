"""Which runtime isolates a container: the default one, or the one for sandboxes.

With the setting ``sandbox_runtime`` at ``auto`` the latter is gVisor where that works. If nobody
knows yet whether it does, that is found out when the node has been linked to its server, and the
first sandbox waits for the verdict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from homeport.kernel.errors import UnavailableError
from homeport.link.messages import StartSandbox, StartTask
from homeport.node.runtime.port import Runtime


class ClosableRuntime(Runtime, Protocol):
    """A runtime with things of its own to undo."""

    async def close(self) -> None: ...


class Isolation:
    """The runtimes of a node. Of those that it is given, it closes what ``choose`` found."""

    def __init__(
        self, default: Runtime, sandboxes: Runtime | None = None, *, is_free: bool = False
    ) -> None:
        """``is_free``: nobody named the sandboxes' runtime (``auto``).

        Then a sandbox is given the default one if it asks for what the other cannot do.
        """
        self._default = default
        self._sandboxes = sandboxes or default
        self._is_free = is_free
        self._expected = ""
        self._wanted = asyncio.Event()
        self._choice: asyncio.Task[None] | None = None
        self._chosen: ClosableRuntime | None = None
        self.disappointed: Callable[[], None] = lambda: None
        """Called when the expected runtime is not what was chosen (set while wiring)."""

    def choose(
        self, expected: str, choice: Callable[[], Awaitable[ClosableRuntime | None]]
    ) -> None:
        """The sandboxes' runtime is what ``choice`` will give, probably that called ``expected``.

        ``None``: the default one. It is called when a sandbox is there, or by ``begin``.
        """
        self._expected = expected
        self._choice = asyncio.create_task(self._take(choice), name="choice of runtime")

    def begin(self) -> None:
        """The node has nothing more urgent to do: let the choice be made, if there is one."""
        self._wanted.set()

    async def _take(self, choice: Callable[[], Awaitable[ClosableRuntime | None]]) -> None:
        try:
            await self._wanted.wait()
            self._chosen = await choice()
            self._sandboxes = self._chosen or self._default
        finally:
            expected, self._expected = self._expected, ""
        if expected not in self.names:
            self.disappointed()

    async def settled(self) -> None:
        """Until the sandboxes' runtime is known."""
        self._wanted.set()
        if self._choice is not None:
            await asyncio.wait([self._choice])
            if not self._choice.cancelled():
                self._choice.result()  # a defect: let it be seen

    @property
    def names(self) -> list[str]:
        """What the server is told: an expected runtime too, until it is known."""
        names = {self._default.name, self._sandboxes.name, self._expected}
        return sorted(names - {""})

    async def runtime(self, start: StartTask | StartSandbox) -> Runtime:
        """The runtime for it. Raises ``UnavailableError`` for one that was named and is not here."""
        if isinstance(start, StartTask):
            return self._named(start.runtime or self._default.name)
        if start.gpus and not start.runtime and self._is_free:
            return self._default  # whatever is chosen: gVisor gives no devices
        await self.settled()
        return self._named(start.runtime or self._sandboxes.name)

    def _named(self, name: str) -> Runtime:
        have = {runtime.name: runtime for runtime in (self._default, self._sandboxes)}
        if name not in have:
            names = ", ".join(sorted(have))
            raise UnavailableError(f"this node has no runtime {name!r} (it has: {names})")
        return have[name]

    async def close(self) -> None:
        """Give up a choice that is being made, and close what was chosen. Idempotent."""
        if self._choice is not None and not self._choice.done():
            self._choice.cancel()
            await asyncio.wait([self._choice])
        chosen, self._chosen = self._chosen, None
        if chosen is not None:
            await chosen.close()
