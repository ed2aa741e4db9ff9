"""An event loop whose time passes only while there is nothing to do, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is left that could ever happen")
        if timeout > 0:
            self.loop.pass_time(timeout)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """``time()`` is what the callbacks so far have waited for; there is no I/O."""

    def __init__(self) -> None:
        self._virtual = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self._virtual

    def pass_time(self, seconds: float) -> None:
        self._virtual += seconds


class LoopClock:
    """The time of the running loop, for everything that asks for one."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def simulate(scenario: Coroutine[Any, Any, T]) -> T:
    """Run ``scenario`` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(scenario)
