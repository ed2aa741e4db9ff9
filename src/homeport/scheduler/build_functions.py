"""Functions that are steps of an image (``Image.run_function``): run once, then kept as a layer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from homeport.calls.model import CallType, Invocation
from homeport.calls.service import NO_ARGUMENTS, PICKLE, CallService, InputSpec
from homeport.functions.service import FunctionService
from homeport.images.model import FunctionStep
from homeport.kernel.errors import InvalidError, UnavailableError
from homeport.link.messages import STATUS_SUCCESS, STATUS_TERMINATED, LogEntry, Result

_POLL_S: Final = 600.0
"""How long one wait for the output lasts before it is asked again."""
_EXIT_WAIT_S: Final = 300.0
"""A container that returned its output ends within it: exit handlers, then its files are kept."""
_LEFT_MAX: Final = 256


@dataclass(slots=True)
class _Wanted:
    """The layer that a function's next container is to leave, and who hears what it prints."""

    layer: str
    on_log: Callable[[list[LogEntry]], None]
    exits: dict[str, asyncio.Future[str]] = field(default_factory=dict[str, "asyncio.Future[str]"])

    def exit_of(self, task_id: str) -> asyncio.Future[str]:
        future = self.exits.get(task_id)
        if future is None:
            future = self.exits[task_id] = asyncio.get_running_loop().create_future()
        return future


class BuildFunctions:
    """Runs such functions by the scheduler, one build of a function at a time."""

    def __init__(self, functions: FunctionService) -> None:
        self._functions = functions
        self._wanted: dict[str, _Wanted] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._left: dict[str, str] = {}
        self._calls: CallService

    def use(self, calls: CallService) -> None:
        """Complete the wiring: calls need the scheduler, which needs this."""
        self._calls = calls

    async def build(
        self,
        function_id: str,
        step: FunctionStep,
        *,
        layer: str,
        build_id: str,
        on_log: Callable[[list[LogEntry]], None],
    ) -> None:
        """Run the function; afterwards what it changed is layer ``layer`` of the node.

        Raises ``InvalidError`` with the function's own failure.
        """
        lock = self._locks.setdefault(function_id, asyncio.Lock())
        try:
            async with lock:
                for attempt in range(2):
                    wanted = self._wanted[function_id] = _Wanted(layer, on_log)
                    if await self._run(function_id, step, wanted, f"{build_id}/{attempt}"):
                        return
                raise UnavailableError("the container of the function was lost twice; try again")
        finally:
            if not lock.locked():
                self._wanted.pop(function_id, None)
                self._locks.pop(function_id, None)

    async def _run(self, function_id: str, step: FunctionStep, wanted: _Wanted, key: str) -> bool:
        """Whether the layer is there; ``False`` if its container ended without a word."""
        record = self._functions.get(function_id)
        call = await self._calls.create(
            function_id=function_id,
            app_id=record.app_id,
            type_=CallType.UNARY,
            invocation=Invocation.SYNC,
            parent_input_id="",
            inputs=[_input(step)],
            key=f"image build {key}",
        )
        try:
            outputs, _ = await self._calls.outputs_between(call.call_id, 0, 0, _POLL_S)
            while not outputs:
                outputs, _ = await self._calls.outputs_between(call.call_id, 0, 0, _POLL_S)
        except asyncio.CancelledError:
            await self._calls.cancel(call.call_id, terminate_containers=True)
            raise
        output = outputs[0]
        self._calls.clear(call.call_id)
        if output.result.status != STATUS_SUCCESS:
            raise InvalidError(_failure(record.tag, output.result))
        try:
            async with asyncio.timeout(_EXIT_WAIT_S):
                left = self._left.get(output.task_id)
                return (left or await wanted.exit_of(output.task_id)) == wanted.layer
        except TimeoutError:
            return False

    # ── for the scheduler ───────────────────────────────────────────────────────────────────

    def layer_of(self, function_id: str) -> str:
        """The layer that a container of this function is to leave; empty for ordinary ones."""
        wanted = self._wanted.get(function_id)
        return wanted.layer if wanted is not None else ""

    def take_logs(self, function_id: str, entries: Sequence[LogEntry]) -> bool:
        """Give output to the build it belongs to; ``False`` if it belongs to none."""
        wanted = self._wanted.get(function_id)
        if wanted is None:
            return False
        wanted.on_log([LogEntry(each.fd, each.time_ns, each.data) for each in entries])
        return True

    def exited(self, function_id: str, task_id: str, layer: str) -> None:
        """A container of the function is gone and left ``layer`` (empty: nothing).

        After a restart the report may come before the build is taken up again.
        """
        if layer:
            self._left[task_id] = layer
            while len(self._left) > _LEFT_MAX:
                del self._left[next(iter(self._left))]
        wanted = self._wanted.get(function_id)
        if wanted is not None and not (future := wanted.exit_of(task_id)).done():
            future.set_result(layer)


def _input(step: FunctionStep) -> InputSpec:
    if step.args is None:
        return InputSpec(0, NO_ARGUMENTS, "", PICKLE, "")
    return InputSpec(0, step.args, step.args_blob_id, step.data_format, "")


def _failure(name: str, result: Result) -> str:
    what = "was stopped" if result.status == STATUS_TERMINATED else "failed"
    return f"run_function({name}) {what}: {result.exception or 'without a message'}"
