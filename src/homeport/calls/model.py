"""Calls, inputs and outputs, as held in memory while they matter.

The database has the durable half (what was asked, what came out); where an input is right now
is known only here and is found anew after a restart: an input without an output runs again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from homeport.calls.exchange import Exchange
from homeport.calls.lease import Lease
from homeport.link.messages import Result


class CallType(IntEnum):
    """The protocol's ``FunctionCallType``."""

    UNARY = 1
    MAP = 2


class Invocation(IntEnum):
    """The protocol's ``FunctionCallInvocationType``."""

    SYNC_LEGACY = 1
    ASYNC_LEGACY = 2
    ASYNC = 3
    SYNC = 4


class InputState(IntEnum):
    """Where an input is."""

    WAITING = 0
    """Queued, or counting down to a retry."""
    ASSIGNED = 1
    """Given to a task."""
    DONE = 2


@dataclass(slots=True)
class Output:
    """The final result of an input. Times are Unix seconds."""

    input_id: str
    idx: int
    result: Result
    data_format: int
    task_id: str
    started_at: float
    finished_at: float


class Cursor(NamedTuple):
    """How much of a map's outputs its caller has: the first ``position``, in the order of ``run``.

    Outputs are given out before they are on disk, so the order in which one run of the server had
    them is not known to the next: a cursor of another run stands for the beginning.
    """

    position: int = 0
    run: str = "0"


@dataclass(slots=True, eq=False)
class Input:
    """One input of a call: at most one attempt of it is alive at a time."""

    input_id: str
    call: Call
    idx: int
    args: bytes | None
    args_blob_id: str
    data_format: int
    method_name: str
    enqueued_at: float = 0.0
    """Unix seconds; 0 = with its call."""
    started_at: float = 0.0
    """When its container began the attempt that is alive, as far as it is known; Unix seconds."""
    state: InputState = InputState.WAITING
    attempt: int = 0
    """Number of the current attempt: fences late outputs of earlier ones."""
    user_retries: int = 0
    """Retries spent from the function's own policy."""
    crashes: int = 0
    """Attempts that ended with their container."""
    task_id: str = ""
    output: Output | None = None
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class Call:
    """One ``.remote``, ``.spawn`` or ``.map`` and all its inputs."""

    call_id: str
    function_id: str
    app_id: str
    type: CallType
    invocation: Invocation
    parent_input_id: str
    created_at: float
    inputs: dict[int, Input] = field(default_factory=dict[int, "Input"])
    outputs: list[Output] = field(default_factory=list["Output"])
    """In order of completion: a map's ``Cursor`` is an index into it."""
    is_closed: bool = False
    """No more inputs will come."""
    cancelled: bool = False
    cleared: bool = False
    """The caller took its results and said so: nothing is kept."""
    finished_at: float = 0.0
    exchange: Exchange | None = None
    """The connection its one input is bound to: nothing of such a call is recorded."""
    lease: Lease | None = None
    """The connection that has a place in a container for its one input; not recorded either."""
    readers: int = 0
    """How many read what its generator yields."""
    _waiters: set[asyncio.Future[None]] = field(default_factory=set[asyncio.Future[None]])

    @property
    def is_bound(self) -> bool:
        """Whether it lives with a connection: nothing of it is recorded."""
        return self.exchange is not None or self.lease is not None

    @property
    def unfinished(self) -> int:
        """Inputs without an output."""
        return len(self.inputs) - len(self.outputs)

    def inputs_between(self, first: int, last: int) -> list[Input]:
        """The inputs with ``first <= idx <= last``."""
        if last - first < len(self.inputs):
            return [self.inputs[idx] for idx in range(first, last + 1) if idx in self.inputs]
        return [item for idx, item in sorted(self.inputs.items()) if first <= idx <= last]

    def wake(self) -> None:
        """Let everyone look again who waits for outputs of this call."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def changed(self, deadline: float, ready: Callable[[], bool]) -> bool:
        """Wait until ``ready()`` or the loop time ``deadline``; whether it became ready."""
        loop = asyncio.get_running_loop()
        while not ready():
            remaining = deadline - loop.time()
            if remaining <= 0:
                return False
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.add(waiter)
            timer = loop.call_later(remaining, _wake_one, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiters.discard(waiter)
        return True


def _wake_one(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
