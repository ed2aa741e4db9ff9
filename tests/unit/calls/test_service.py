"""Calls with a real database and an executor that does nothing by itself."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from homeport.calls.model import CallType, Cursor, Input, Invocation, Output
from homeport.calls.service import CallService, InputSpec, terminated
from homeport.calls.store import CallStore
from homeport.kernel.clock import SystemClock
from homeport.kernel.errors import ExhaustedError, InvalidError, NotFoundError
from homeport.link.messages import STATUS_SUCCESS, Result
from homeport.storage.database import Database


class Recorder:
    """Collects what it is told to run and to cancel."""

    def __init__(self) -> None:
        self.queued: list[Input] = []
        self.cancelled: list[Input] = []
        self.finished_apps: list[str] = []

    def enqueue(self, inputs: Sequence[Input]) -> None:
        self.queued.extend(inputs)

    def cancel(self, inputs: Sequence[Input], *, terminate_containers: bool) -> None:
        self.cancelled.extend(inputs)

    def work_finished(self, app_id: str) -> None:
        self.finished_apps.append(app_id)


def result_of(item: Input, data: bytes = b"x", finished_at: float = 2.0) -> Output:
    result = Result(STATUS_SUCCESS, data=data)
    return Output(item.input_id, item.idx, result, 1, "ta-1", 1.0, finished_at)


def spec(idx: int) -> InputSpec:
    return InputSpec(idx, b"args", "", 1, "")


Scenario = Callable[[CallService, Recorder], Awaitable[None]]


def run(
    path: Path,
    scenario: Scenario,
    inputs_pending_max: int = 1000,
    function_inputs_max: int = 1000,
) -> None:
    async def main() -> None:
        database = Database.sqlite(path / "x.db")
        await database.start()
        executor = Recorder()
        service = CallService(
            CallStore(database),
            executor,
            SystemClock(),
            inputs_pending_max=inputs_pending_max,
            function_inputs_max=function_inputs_max,
            result_retention_s=3600,
            abandoned_call_s=0.05,
        )
        executor.queued.extend(await service.start())
        try:
            await scenario(service, executor)
        finally:
            await service.stop()
            await database.stop()

    asyncio.run(main())


async def open_map(service: CallService, key: str = "k"):
    return await service.create(
        function_id="fu-1",
        app_id="ap-1",
        type_=CallType.MAP,
        invocation=Invocation.SYNC,
        parent_input_id="",
        inputs=[],
        key=key,
    )


def test_a_repeated_request_finds_the_call_it_made(tmp_path: Path) -> None:
    async def scenario(service: CallService, executor: Recorder) -> None:
        for _ in range(2):
            call = await service.create(
                function_id="fu-1",
                app_id="ap-1",
                type_=CallType.UNARY,
                invocation=Invocation.SYNC,
                parent_input_id="",
                inputs=[spec(0)],
                key="same",
            )
        assert len(call.inputs) == 1
        assert len(executor.queued) == 1

    run(tmp_path, scenario)


def test_inputs_put_twice_run_once(tmp_path: Path) -> None:
    async def scenario(service: CallService, executor: Recorder) -> None:
        call = await open_map(service)
        first = await service.put_inputs(call.call_id, [spec(0), spec(1)])
        again = await service.put_inputs(call.call_id, [spec(1), spec(2)])
        assert first[1] is again[0]
        assert [item.idx for item in executor.queued] == [0, 1, 2]

    run(tmp_path, scenario)


def test_a_maps_cursor_gives_each_output_once_in_order_of_completion(tmp_path: Path) -> None:
    async def scenario(service: CallService, executor: Recorder) -> None:
        call = await open_map(service)
        await service.put_inputs(call.call_id, [spec(n) for n in range(3)])
        items = [call.inputs[n] for n in (2, 0)]
        service.finish([(item, result_of(item)) for item in items])
        outputs, cursor, unfinished = await service.outputs_after(call.call_id, Cursor(), 1.0)
        assert [output.idx for output in outputs] == [2, 0]
        assert unfinished == 1
        last = call.inputs[1]
        asyncio.get_running_loop().call_soon(service.finish, [(last, result_of(last))])
        outputs, cursor, unfinished = await service.outputs_after(call.call_id, cursor, 30.0)
        assert [output.idx for output in outputs] == [1]
        assert unfinished == 0
        assert executor.finished_apps == ["ap-1"]

    run(tmp_path, scenario)


def test_a_second_result_of_an_input_is_ignored(tmp_path: Path) -> None:
    async def scenario(service: CallService, _executor: Recorder) -> None:
        call = await open_map(service)
        await service.put_inputs(call.call_id, [spec(0)])
        item = call.inputs[0]
        service.finish([(item, result_of(item, b"first"))])
        service.finish([(item, result_of(item, b"second"))])
        outputs, _, _ = await service.outputs_after(call.call_id, Cursor(), 1.0)
        assert [output.result.data for output in outputs] == [b"first"]

    run(tmp_path, scenario)


def test_unfinished_inputs_and_results_are_there_after_a_restart(tmp_path: Path) -> None:
    async def before(service: CallService, _executor: Recorder) -> None:
        call = await open_map(service)
        await service.put_inputs(call.call_id, [spec(n) for n in range(4)])
        done = call.inputs[1]
        await asyncio.gather(*service.finish([(done, result_of(done))]))

    async def after(service: CallService, executor: Recorder) -> None:
        assert sorted(item.idx for item in executor.queued) == [0, 2, 3]
        call = executor.queued[0].call
        outputs, _, unfinished = await service.outputs_after(call.call_id, Cursor(), 0.1)
        assert [output.idx for output in outputs] == [1]
        assert unfinished == 3

    run(tmp_path, before)
    run(tmp_path, after)


def test_a_poll_after_a_restart_misses_nothing_though_the_clock_was_set_back(
    tmp_path: Path,
) -> None:
    seen: list[int] = []
    last: list[Cursor] = [Cursor()]

    async def before(service: CallService, _executor: Recorder) -> None:
        call = await open_map(service)
        await service.put_inputs(call.call_id, [spec(n) for n in range(3)])
        await asyncio.gather(*service.finish([(call.inputs[0], result_of(call.inputs[0]))]))
        outputs, last[0], _ = await service.outputs_after(call.call_id, last[0], 1.0)
        seen.extend(output.idx for output in outputs)
        earlier = result_of(call.inputs[1], finished_at=1.5)
        await asyncio.gather(*service.finish([(call.inputs[1], earlier)]))

    async def after(service: CallService, executor: Recorder) -> None:
        call = executor.queued[0].call
        outputs, cursor, _ = await service.outputs_after(call.call_id, last[0], 1.0)
        assert {*seen, *(output.idx for output in outputs)} == {0, 1}
        service.finish([(call.inputs[2], result_of(call.inputs[2]))])
        outputs, _, _ = await service.outputs_after(call.call_id, cursor, 1.0)
        assert [output.idx for output in outputs] == [2]

    run(tmp_path, before)
    run(tmp_path, after)


def test_a_poll_misses_nothing_though_outputs_it_had_were_lost_in_a_crash(tmp_path: Path) -> None:
    copy = tmp_path / "after the crash"
    copy.mkdir()
    last: list[Cursor] = [Cursor()]

    async def before(service: CallService, _executor: Recorder) -> None:
        call = await open_map(service)
        await service.put_inputs(call.call_id, [spec(n) for n in range(3)])

    async def crash(service: CallService, executor: Recorder) -> None:
        service.finish([(item, result_of(item)) for item in executor.queued[:2]])
        call_id = executor.queued[0].call.call_id
        outputs, last[0], _ = await service.outputs_after(call_id, last[0], 1.0)
        assert [output.idx for output in outputs] == [0, 1]

    async def after(service: CallService, executor: Recorder) -> None:
        third = executor.queued[2]
        service.finish([(third, result_of(third))])
        outputs, _, _ = await service.outputs_after(third.call.call_id, last[0], 1.0)
        assert [output.idx for output in outputs] == [2]

    run(tmp_path, before)
    shutil.copytree(tmp_path, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(copy.name))
    run(tmp_path, crash)
    run(copy, after)


def test_too_many_waiting_inputs_are_refused_with_the_limit(tmp_path: Path) -> None:
    async def scenario(service: CallService, _executor: Recorder) -> None:
        call = await open_map(service)
        await service.put_inputs(call.call_id, [spec(n) for n in range(10)])
        with pytest.raises(ExhaustedError, match="10"):
            await service.put_inputs(call.call_id, [spec(10)])

    run(tmp_path, scenario, inputs_pending_max=10)


def test_a_function_has_a_limit_for_all_its_callers(tmp_path: Path) -> None:
    async def scenario(service: CallService, executor: Recorder) -> None:
        async def remote(key: str):
            return await service.create(
                function_id="fu-1",
                app_id="ap-1",
                type_=CallType.UNARY,
                invocation=Invocation.SYNC,
                parent_input_id="",
                inputs=[spec(0)],
                key=key,
            )

        call = await open_map(service)
        await service.put_inputs(call.call_id, [spec(n) for n in range(4)])
        first = await remote("one")
        with pytest.raises(ExhaustedError, match="5 unfinished inputs"):
            await remote("two")
        with pytest.raises(ExhaustedError, match="function_inputs_max"):
            await service.put_inputs(call.call_id, [spec(4)])
        await service.put_inputs(call.call_id, [spec(3)])  # repeated: nothing new
        assert (await remote("one")) is first
        service.finish([(first.inputs[0], terminated(first.inputs[0], 0.0))])
        await remote("two")

    run(tmp_path, scenario, function_inputs_max=5)


def test_cancelling_a_call_cancels_the_calls_its_inputs_made(tmp_path: Path) -> None:
    async def scenario(service: CallService, executor: Recorder) -> None:
        parent = await open_map(service)
        await service.put_inputs(parent.call_id, [spec(0)])
        child = await service.create(
            function_id="fu-2",
            app_id="ap-1",
            type_=CallType.UNARY,
            invocation=Invocation.SYNC,
            parent_input_id=parent.inputs[0].input_id,
            inputs=[spec(0)],
            key="child",
        )
        await service.cancel(parent.call_id, terminate_containers=False)
        assert {item.call.call_id for item in executor.cancelled} == {
            parent.call_id,
            child.call_id,
        }

    run(tmp_path, scenario)


def test_an_unknown_call_is_said_to_be_unknown(tmp_path: Path) -> None:
    async def scenario(service: CallService, _executor: Recorder) -> None:
        with pytest.raises(NotFoundError, match="fc-unknown"):
            service.get("fc-unknown")

    run(tmp_path, scenario)


def test_a_poll_for_an_index_that_never_comes_ends_with_the_reason(tmp_path: Path) -> None:
    async def scenario(service: CallService, _executor: Recorder) -> None:
        call = await open_map(service)
        await service.put_inputs(call.call_id, [spec(0)])
        service.finish([(call.inputs[0], result_of(call.inputs[0]))])
        poll = asyncio.ensure_future(service.outputs_between(call.call_id, 7, 7, 60.0))
        await asyncio.sleep(0)
        assert not poll.done()  # the map is open: an input 7 may still be put
        await service.close(call.call_id)
        with pytest.raises(InvalidError, match=r"has 1 input\(s\), so none with index 7"):
            await poll

    run(tmp_path, scenario)


def test_a_poll_for_a_huge_range_costs_no_more_than_the_inputs(tmp_path: Path) -> None:
    async def scenario(service: CallService, _executor: Recorder) -> None:
        call = await open_map(service)
        await service.put_inputs(call.call_id, [spec(n) for n in range(3)])
        service.finish([(call.inputs[2], result_of(call.inputs[2]))])
        outputs, unfinished = await service.outputs_between(call.call_id, 0, 2**31 - 1, 1.0)
        assert [output.idx for output in outputs] == [2]
        assert unfinished == 2

    run(tmp_path, scenario)


def test_a_map_whose_caller_clears_it_early_is_cancelled(tmp_path: Path) -> None:
    async def scenario(service: CallService, executor: Recorder) -> None:
        call = await open_map(service)
        items = await service.put_inputs(call.call_id, [spec(0), spec(1)])
        service.finish([(items[0], result_of(items[0]))])
        service.clear(call.call_id)
        assert executor.cancelled == [items[1]]

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("invocation", "comes_back", "ends"),
    [
        (Invocation.SYNC, False, True),
        (Invocation.SYNC, True, False),
        (Invocation.ASYNC, False, False),
    ],
)
def test_a_generator_that_nobody_reads_any_more_is_cancelled(
    tmp_path: Path, invocation: Invocation, comes_back: bool, ends: bool
) -> None:
    async def scenario(service: CallService, executor: Recorder) -> None:
        call = await service.create(
            function_id="fu-1",
            app_id="ap-1",
            type_=CallType.UNARY,
            invocation=invocation,
            parent_input_id="",
            inputs=[spec(0)],
            key="k",
        )
        with service.reader(call.call_id):
            await asyncio.sleep(0.1)
            assert executor.cancelled == []
        with service.reader(call.call_id) if comes_back else contextlib.nullcontext():
            await asyncio.sleep(0.3)
            assert bool(executor.cancelled) is ends

    run(tmp_path, scenario)
