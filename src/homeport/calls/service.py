"""Use cases of calls: record inputs, hand out results, cancel, forget.

Inputs are queued for execution as soon as they are recorded in memory and acknowledged only
when their transaction is committed: the commit runs beside the execution, not before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol

from homeport.calls.exchange import Exchange
from homeport.calls.lease import Lease
from homeport.calls.model import Call, CallType, Cursor, Input, InputState, Invocation, Output
from homeport.calls.store import CallStore
from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import ConflictError, ExhaustedError, InvalidError, NotFoundError
from homeport.link.messages import STATUS_SUCCESS, STATUS_TERMINATED, Result
from homeport.storage.database import Step

MAP_LINGER_S = 0.03
"""A map's poll waits this long after the first output to gather more.

Each poll carries a token of every awaited input, so answering one output at a time costs the
client several times the work of the output itself."""
ANSWER_BYTES_MAX = 16 * 1024 * 1024
"""Payload bytes in one answer with outputs (at least one output is always given)."""
CANCELLED_TEXT = "The input was cancelled"
CLEAR_GRACE_S = 60.0
"""A cleared call stays readable that long: its last poll may have been lost on the way."""
_DELETE_DELAY_S = 1.0
PICKLE = 1
"""The protocol's ``PICKLE``."""
NO_ARGUMENTS = b"\x80\x04)}\x86."
"""Pickled ``((), {})``."""


class InputSpec(NamedTuple):
    """An input as a client hands it in."""

    idx: int
    args: bytes | None
    args_blob_id: str
    data_format: int
    method_name: str


class Executor(Protocol):
    """Who runs inputs (the scheduler)."""

    def enqueue(self, inputs: Sequence[Input]) -> None:
        """Run these inputs. Each comes back through ``CallService.finish``."""
        ...

    def cancel(self, inputs: Sequence[Input], *, terminate_containers: bool) -> None:
        """End these inputs; those that no task holds are finished at once."""
        ...

    def give_back(self, item: Input) -> None:
        """The holder of this lease is done: it comes back as a success."""
        ...

    def work_finished(self, app_id: str) -> None:
        """The app has no unfinished input any more."""
        ...


class CallService:
    """All calls that anyone may still ask about."""

    def __init__(
        self,
        store: CallStore,
        executor: Executor,
        clock: Clock,
        *,
        inputs_pending_max: int,
        function_inputs_max: int = 1_000_000,
        result_retention_s: float,
        abandoned_call_s: float,
    ) -> None:
        self._store = store
        self._executor = executor
        self._clock = clock
        self._inputs_pending_max = inputs_pending_max
        self._function_inputs_max = function_inputs_max
        self._result_retention_s = result_retention_s
        self._abandoned_call_s = abandoned_call_s
        self._run = secrets.token_hex(4)
        self._call_ids = ids.Series(ids.CALL)
        self._input_ids = ids.Series(ids.INPUT)
        self._calls: dict[str, Call] = {}
        self._inputs: dict[str, Input] = {}
        self._unfinished_of_app: dict[str, int] = {}
        self._unfinished_of_function = Counter[str]()
        self._cleared: list[str] = []
        self._deletion: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self._housekeeping: asyncio.Task[None] | None = None
        self._abandoning: set[asyncio.Task[None]] = set()
        self._on_forget: list[Callable[[str], None]] = []
        self._on_finish: list[Callable[[Input, Output], None]] = []
        self._before_deletion: list[Callable[[], None]] = []
        self._busy: dict[str, dict[str, Call]] = {}
        """By function: its calls with inputs that have no output."""

    def on_forget(self, listener: Callable[[str], None]) -> None:
        """Have ``listener`` called with the id of each call that is no longer kept."""
        self._on_forget.append(listener)

    def on_finish(self, listener: Callable[[Input, Output], None]) -> None:
        """Have ``listener`` called with each input that ended, and how."""
        self._on_finish.append(listener)

    def before_deletion(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called before rows of ended calls are deleted."""
        self._before_deletion.append(listener)

    async def start(self) -> list[Input]:
        """Read what earlier runs left; returns the inputs that have no output yet."""
        unfinished: list[Input] = []
        for call in await self._store.load():
            self._calls[call.call_id] = call
            for item in call.inputs.values():
                self._inputs[item.input_id] = item
                if item.output is None:
                    unfinished.append(item)
                    self._count(call, 1)
        self._housekeeping = asyncio.create_task(self._expire_results())
        return unfinished

    async def stop(self) -> None:
        self._is_stopped = True
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        if self._deletion is not None:
            self._deletion.cancel()
            self._delete_cleared()
        for call in self._calls.values():
            call.wake()

    def _count(self, call: Call, change: int) -> int:
        """Unfinished inputs of the call's app, after the change."""
        app_id = call.app_id
        self._unfinished_of_function[call.function_id] += change
        if not self._unfinished_of_function[call.function_id]:
            del self._unfinished_of_function[call.function_id]
            self._busy.pop(call.function_id, None)
        elif call.unfinished:
            self._busy.setdefault(call.function_id, {})[call.call_id] = call
        else:
            self._busy.get(call.function_id, {}).pop(call.call_id, None)
        left = self._unfinished_of_app.get(app_id, 0) + change
        if left:
            self._unfinished_of_app[app_id] = left
        else:
            self._unfinished_of_app.pop(app_id, None)
        return left

    # ── look-ups ────────────────────────────────────────────────────────────────────────────

    def find(self, call_id: str) -> Call | None:
        return self._calls.get(call_id)

    def get(self, call_id: str) -> Call:
        """The call; raises ``NotFoundError``."""
        call = self._calls.get(call_id)
        if call is None:
            raise unknown_call(call_id)
        return call

    def all(self) -> list[Call]:
        """Every call that is kept."""
        return list(self._calls.values())

    def busy_functions(self) -> list[str]:
        """Ids of functions with unfinished inputs."""
        return list(self._busy)

    def unfinished_of(self, function_id: str) -> list[Call]:
        """The function's calls with unfinished inputs."""
        return list(self._busy.get(function_id, {}).values())

    def find_input(self, input_id: str) -> Input | None:
        return self._inputs.get(input_id)

    def has_work(self, app_id: str) -> bool:
        """Whether inputs of the app have no output yet."""
        return app_id in self._unfinished_of_app

    def children_of(self, input_ids: set[str]) -> list[Call]:
        """Calls that inputs of ``input_ids`` made."""
        return [call for call in self._calls.values() if call.parent_input_id in input_ids]

    # ── inputs ──────────────────────────────────────────────────────────────────────────────

    def _check_room(self, function_id: str, count: int) -> None:
        """Raises ``ExhaustedError`` if that many further inputs of a function are too many."""
        unfinished = self._unfinished_of_function[function_id]
        if unfinished + count > self._function_inputs_max:
            raise ExhaustedError(
                f"The function has {unfinished} unfinished inputs, of all its callers together; "
                f"the limit is {self._function_inputs_max} (setting function_inputs_max). Call it "
                "again when some of them have ended."
            )

    async def create(
        self,
        *,
        function_id: str,
        app_id: str,
        type_: CallType,
        invocation: Invocation,
        parent_input_id: str,
        inputs: Sequence[InputSpec],
        key: str,
    ) -> Call:
        """Open a call, with its one input if it is unary (RPC ``FunctionMap``).

        The call's id is derived from ``key`` (the idempotency key), so a repeated request finds
        the call it made, even after a restart.
        """
        call_id = ids.derive(ids.CALL, key) if key else ids.new(ids.CALL)
        call = self._calls.get(call_id)
        if call is None:
            self._check_room(function_id, len(inputs))
            call = Call(
                call_id=call_id,
                function_id=function_id,
                app_id=app_id,
                type=type_,
                invocation=invocation,
                parent_input_id=parent_input_id,
                created_at=self._clock.now(),
                is_closed=type_ is CallType.UNARY and bool(inputs),
            )
            self._calls[call_id] = call
        durable = self._store.add_call(call)
        if inputs:
            durable = self._record(call, inputs)
        await durable
        return call

    async def create_recorded(
        self, *, function_id: str, app_id: str, key: str, beside: Sequence[Step]
    ) -> Call:
        """A spawned call without arguments, with an id made from ``key``.

        Unlike the calls of clients it is handed out only when it is on disk, together with
        ``beside``: what comes about by itself must not happen twice, nor half.
        """
        call_id = ids.derive(ids.CALL, key)
        call = Call(
            call_id=call_id,
            function_id=function_id,
            app_id=app_id,
            type=CallType.UNARY,
            invocation=Invocation.ASYNC,
            parent_input_id="",
            created_at=self._clock.now(),
            is_closed=True,
        )
        item = _new_input(call, InputSpec(0, NO_ARGUMENTS, "", PICKLE, ""), call.created_at)
        await self._store.add_whole(call, [item], beside)
        known = self._calls.get(call_id)
        if known is not None:
            return known
        self._calls[call_id] = call
        self._add(call, [item])
        self._executor.enqueue([item])
        return call

    def open_bound(
        self, *, function_id: str, app_id: str, method_name: str, args: bytes, exchange: Exchange
    ) -> Call:
        """A call that lives with a connection: one input, given to the executor at once.

        Nothing of it is recorded, so ``release`` has to be called when the connection is done.
        """
        call = self._bound_call(function_id, app_id, method_name, args)
        call.exchange = exchange
        self._executor.enqueue([call.inputs[0]])
        return call

    def open_lease(self, *, function_id: str, app_id: str) -> Lease:
        """A place in a container, for a connection that needs no input; ``give_back`` it."""
        call = self._bound_call(function_id, app_id, "", None)
        lease = call.lease = Lease()
        lease.call = call
        self._executor.enqueue([call.inputs[0]])
        return lease

    def give_back(self, lease: Lease) -> None:
        """The place of a lease is free again, or no longer wanted. Idempotent."""
        assert lease.call is not None
        lease.on_change = _nothing
        item = lease.call.inputs[0]
        if item.output is None:
            self._executor.give_back(item)

    def _bound_call(
        self, function_id: str, app_id: str, method_name: str, args: bytes | None
    ) -> Call:
        call = Call(
            call_id=self._call_ids.next() if args is None else ids.new(ids.CALL),
            function_id=function_id,
            app_id=app_id,
            type=CallType.UNARY,
            invocation=Invocation.SYNC,
            parent_input_id="",
            created_at=self._clock.now(),
            is_closed=True,
        )
        item = Input(
            input_id=self._input_ids.next(),
            call=call,
            idx=0,
            args=args,
            args_blob_id="",
            data_format=PICKLE,
            method_name=method_name,
            enqueued_at=call.created_at,
        )
        call.inputs[0] = item
        self._calls[call.call_id] = call
        self._inputs[item.input_id] = item
        self._count(call, 1)
        return call

    def release(self, call: Call) -> None:
        """The connection of a bound call is done: what still runs is cancelled."""
        assert call.exchange is not None
        call.exchange.close()
        if call.unfinished:
            call.cancelled = True
            self._cancel_inputs(list(call.inputs.values()), terminate_containers=False)
        if not call.unfinished:
            self._forget(call.call_id)

    async def put_inputs(self, call_id: str, inputs: Sequence[InputSpec]) -> list[Input]:
        """Add inputs to a call; those with a known ``idx`` are the ones already there.

        Raises ``ExhaustedError`` when the call has too many waiting inputs (clients of maps
        wait and try again).
        """
        call = self.get(call_id)
        if call.cancelled:
            raise ConflictError(f"Function call {call_id} was cancelled")
        if call.unfinished + len(inputs) > self._inputs_pending_max:
            raise ExhaustedError(
                f"Function call {call_id} has {call.unfinished} unfinished inputs; the limit is "
                f"{self._inputs_pending_max} (setting inputs_pending_max)."
            )
        self._check_room(call.function_id, sum(item.idx not in call.inputs for item in inputs))
        await self._record(call, inputs)
        return [call.inputs[item.idx] for item in inputs]

    def _record(self, call: Call, specs: Sequence[InputSpec]) -> asyncio.Future[None]:
        added: list[Input] = []
        now = self._clock.now()
        for spec in specs:
            if spec.idx in call.inputs:
                continue
            added.append(_new_input(call, spec, now))
        self._add(call, added)
        durable = self._store.add_inputs(added or [call.inputs[spec.idx] for spec in specs])
        if added:
            self._executor.enqueue(added)
        return durable

    def _add(self, call: Call, items: Sequence[Input]) -> None:
        for item in items:
            call.inputs[item.idx] = item
            self._inputs[item.input_id] = item
        if items:
            self._count(call, len(items))

    async def close(self, call_id: str) -> None:
        """No more inputs will come for the call (RPC ``FunctionFinishInputs``)."""
        call = self.get(call_id)
        call.is_closed = True
        await self._store.update_call(call)
        call.wake()

    # ── outputs ─────────────────────────────────────────────────────────────────────────────

    def finish(self, outputs: Sequence[tuple[Input, Output]]) -> list[asyncio.Future[None]]:
        """Record final results; whoever waits for them is woken at once.

        Returns futures that are done when the results are durable.
        """
        by_call: dict[str, list[Output]] = {}
        for item, output in outputs:
            if item.output is not None:
                continue
            item.output = output
            item.state = InputState.DONE
            item.args = None  # no longer needed: a finished input never runs again
            item.call.outputs.append(output)
            by_call.setdefault(item.call.call_id, []).append(output)
            for listener in self._on_finish:
                listener(item, output)
        durable: list[asyncio.Future[None]] = []
        finished_apps: set[str] = set()
        for call_id, items in by_call.items():
            call = self._calls.get(call_id)
            if call is None:
                continue
            if call.exchange is not None:
                call.exchange.finish(items[0])
            elif call.lease is not None:
                call.lease.finish(items[0])
                self._forget(call_id)
            elif not call.cleared:
                durable.append(self._store.add_outputs(call_id, items))
            if self._count(call, -len(items)) == 0:
                finished_apps.add(call.app_id)
            if call.unfinished == 0:
                call.finished_at = self._clock.now()
                if call.exchange is not None and call.exchange.is_closed:
                    self._forget(call_id)
            call.wake()
        for app_id in finished_apps:
            self._executor.work_finished(app_id)
        return durable

    async def outputs_after(
        self, call_id: str, cursor: Cursor, timeout_s: float
    ) -> tuple[list[Output], Cursor, int]:
        """A map's poll: outputs from ``cursor`` on, the new cursor, the unfinished count.

        Waits up to ``timeout_s`` for the first, then briefly for more. After a restart of the
        server the first poll has all outputs anew: callers pass over those they know.
        """
        call = self.get(call_id)
        first = cursor.position if cursor.run == self._run else 0
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if await call.changed(deadline, lambda: len(call.outputs) > first) and call.unfinished:
            linger = min(deadline, loop.time() + MAP_LINGER_S)
            await call.changed(linger, lambda: call.unfinished == 0)
        taken = _within_budget(call.outputs[first:])
        return taken, Cursor(first + len(taken), self._run), call.unfinished

    async def outputs_between(
        self, call_id: str, first: int, last: int, timeout_s: float
    ) -> tuple[list[Output], int]:
        """Outputs of the inputs ``first``…``last``: waits until there is at least one.

        Raises ``InvalidError`` when there never will be one.
        """
        call = self.get(call_id)
        deadline = asyncio.get_running_loop().time() + timeout_s

        def present() -> list[Output]:
            items = call.inputs_between(first, last)
            return [item.output for item in items if item.output is not None]

        def missing() -> bool:
            return call.is_closed and not call.inputs_between(first, last)

        await call.changed(deadline, lambda: bool(present()) or missing())
        if missing():
            raise InvalidError(
                f"Function call {call_id} has {len(call.inputs)} input(s), so none with index "
                f"{first}: they count from 0."
            )
        return _within_budget(present()), call.unfinished

    def clear(self, call_id: str) -> None:
        """The caller has its results: forget the call after a grace period."""
        call = self._calls.get(call_id)
        if call is None or call.cleared:
            return
        call.cleared = True
        if call.unfinished:  # the caller gave up
            self._cancel_inputs(list(call.inputs.values()), terminate_containers=False)
        self._cleared.append(call_id)
        loop = asyncio.get_running_loop()
        # Without a database there is none to delete from: what is left expires some day.
        if self._deletion is None and not self._is_stopped:
            self._deletion = loop.call_later(_DELETE_DELAY_S, self._delete_cleared)
        loop.call_later(CLEAR_GRACE_S, self._forget, call_id)

    def _delete_cleared(self) -> None:
        self._deletion = None
        cleared, self._cleared = self._cleared, []
        if cleared:
            self._delete(cleared)

    def _delete(self, call_ids: Sequence[str]) -> None:
        for listener in self._before_deletion:
            listener()
        self._store.delete_calls(call_ids)

    def _forget(self, call_id: str) -> None:
        call = self._calls.pop(call_id, None)
        if call is None:
            return
        for item in call.inputs.values():
            self._inputs.pop(item.input_id, None)
        for listener in self._on_forget:
            listener(call_id)
        if call.unfinished:
            self._count(call, -call.unfinished)
            self._busy.get(call.function_id, {}).pop(call_id, None)

    @contextlib.contextmanager
    def reader(self, call_id: str) -> Generator[None]:
        """Around someone's reading of what a generator yields (RPC ``FunctionCallGetDataOut``).

        A caller in the middle of a generator always reads. Once nobody does, and nobody comes back,
        the call is cancelled, so that its container is free again; a spawned call goes on.
        """
        call = self.get(call_id)
        call.readers += 1
        try:
            yield
        finally:
            call.readers -= 1
            if call.unfinished and call.invocation in (Invocation.SYNC, Invocation.SYNC_LEGACY):
                loop = asyncio.get_running_loop()
                loop.call_later(self._abandoned_call_s, self._end_unread, call)

    def _end_unread(self, call: Call) -> None:
        if call.unfinished and not call.readers and not call.cancelled:
            ending = asyncio.create_task(self.cancel(call.call_id, terminate_containers=False))
            self._abandoning.add(ending)
            ending.add_done_callback(self._abandoning.discard)

    async def _expire_results(self) -> None:
        """Forget results that nobody fetched within the retention period."""
        while True:
            await asyncio.sleep(min(600.0, max(1.0, self._result_retention_s / 10)))
            old = [call.call_id for call in self._calls.values() if self._is_expired(call)]
            if old:
                self._delete(old)
                for call_id in old:
                    self._forget(call_id)

    def _is_expired(self, call: Call) -> bool:
        """Nothing runs, and the last result (without inputs: the call) is beyond the retention."""
        horizon = self._clock.now() - self._result_retention_s
        return call.unfinished == 0 and (call.finished_at or call.created_at) < horizon

    def apps_asked_for(self) -> set[str]:
        """Ids of apps with calls that are unfinished or have results within the retention."""
        return {call.app_id for call in self._calls.values() if not self._is_expired(call)}

    async def delete_of_app(self, app_id: str) -> None:
        """Delete all calls of an app that is gone."""
        old = [call.call_id for call in self._calls.values() if call.app_id == app_id]
        if old:
            await self._store.delete_calls(old)
            for call_id in old:
                self._forget(call_id)

    # ── ends ────────────────────────────────────────────────────────────────────────────────

    async def cancel(self, call_id: str, *, terminate_containers: bool) -> None:
        """Cancel a call and the calls its inputs made (RPC ``FunctionCallCancel``)."""
        pending = [self.get(call_id)]
        while pending:
            call = pending.pop()
            call.cancelled = True
            call.is_closed = True
            if not call.is_bound:
                await self._store.update_call(call)
            pending.extend(self.children_of({item.input_id for item in call.inputs.values()}))
            self._cancel_inputs(list(call.inputs.values()), terminate_containers)

    def cancel_app(self, app_id: str) -> None:
        """Cancel every unfinished input of an app, whose containers are about to be ended.

        They are ended here already and not asked to cancel what they run: a cancellation that
        comes while a container ends would cut its exit handlers off.
        """
        for call in list(self._calls.values()):
            if call.app_id == app_id and not call.cancelled:
                call.cancelled = True
                call.is_closed = True
                if not call.is_bound:
                    self._store.update_call(call)
                self._cancel_inputs(list(call.inputs.values()), terminate_containers=True)

    def _cancel_inputs(self, inputs: list[Input], terminate_containers: bool) -> None:
        unfinished = [item for item in inputs if item.output is None]
        for item in unfinished:
            item.cancelled = True
        if unfinished:
            self._executor.cancel(unfinished, terminate_containers=terminate_containers)


def _new_input(call: Call, spec: InputSpec, now: float) -> Input:
    return Input(
        input_id=ids.derive(ids.INPUT, call.call_id, str(spec.idx)),
        call=call,
        idx=spec.idx,
        args=spec.args,
        args_blob_id=spec.args_blob_id,
        data_format=spec.data_format,
        method_name=spec.method_name,
        enqueued_at=now,
    )


def unknown_call(call_id: str) -> NotFoundError:
    """The error for a call that nothing is known of."""
    return NotFoundError(
        f"Function call {call_id!r} not found: its results were taken, have expired, "
        "or the id is not one of this installation."
    )


def terminated(item: Input, now: float, reason: str = "") -> Output:
    """The output of an input that was cancelled."""
    return Output(
        input_id=item.input_id,
        idx=item.idx,
        result=Result(STATUS_TERMINATED, exception=reason or CANCELLED_TEXT),
        data_format=0,
        task_id=item.task_id,
        started_at=now,
        finished_at=now,
    )


def success(item: Input, now: float) -> Output:
    """The output of a lease that was given back."""
    return Output(
        input_id=item.input_id,
        idx=item.idx,
        result=Result(STATUS_SUCCESS),
        data_format=0,
        task_id=item.task_id,
        started_at=item.started_at or item.call.created_at,
        finished_at=now,
    )


def _within_budget(outputs: Sequence[Output]) -> list[Output]:
    taken: list[Output] = []
    size = 0
    for output in outputs:
        size += len(output.result.data or b"") + len(output.result.serialized_tb)
        if taken and size > ANSWER_BYTES_MAX:
            break
        taken.append(output)
    return taken


def _nothing() -> None:
    pass
