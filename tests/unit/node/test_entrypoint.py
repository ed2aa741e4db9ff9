"""The official entrypoint against the node: work loop, cancellation, timeouts, ends."""

from __future__ import annotations

import asyncio
import pickle
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from modal_proto import api_pb2

from homeport.link.messages import (
    STATUS_FAILURE,
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    STATUS_TIMEOUT,
    CancelInputs,
    InputsReturned,
    InputsStarted,
    RecallInputs,
    RpcReply,
    RpcRequest,
    StopTask,
    TaskExited,
    TaskInitFailed,
    TaskReady,
)
from homeport.node.runtime.port import ContainerStartError

from .harness import Node, function, item, start_task, value

pytestmark = pytest.mark.usefixtures("patience")
Scenario = Callable[[Node], Awaitable[None]]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits behind a running input stays: here there is no other container for it."""
    monkeypatch.setattr("homeport.node.work.PATIENCE_S", 600.0)


@pytest.fixture
def run() -> Iterator[Callable[[Scenario], None]]:
    """Runs a scenario on a fresh node and checks that nothing is left.

    Sockets need a short path, which ``tmp_path`` is not.
    """

    def go(scenario: Scenario) -> None:
        async def main() -> None:
            async with Node(Path(folder)) as node:
                await scenario(node)

        asyncio.run(main())

    with tempfile.TemporaryDirectory(prefix="node-") as folder:
        yield go


def test_function_runs_inputs_one_by_one_and_leaves_by_kill_switch(run) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("double")))
        items = [item(n) for n in range(3)]
        node.server.deliver(task_id, *items)
        outputs = await node.server.done(*(one.input_id for one in items))
        assert [value(one) for one in outputs] == [0, 2, 4]
        node.server.send(StopTask(task_id, True, 5.0))
        exited = await node.server.first(TaskExited)
        assert (exited.returncode, exited.unfinished, exited.unstarted) == (0, [], [])
        assert exited.was_ready
        assert exited.reason == ""

    run(scenario)


def test_output_is_preceded_by_what_was_printed_and_attributed(run) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("echo_err")))
        one, two = item(1), item(2)
        node.server.deliver(task_id, one, two)
        await node.server.done(one.input_id, two.input_id)
        # At the moment an output arrives, its prints have arrived.
        assert "out 1" in node.server.text(1)
        assert "err 2" in node.server.text(2)
        owners = {
            (entry.input_id, entry.call_id) for entry in node.server.entries() if "2" in entry.data
        }
        assert owners == {(two.input_id, two.call_id)}

    run(scenario)


def test_generator_streams_through_the_server(run) -> None:
    async def scenario(node: Node) -> None:
        chunks: list[api_pb2.DataChunk] = []

        def put(request: RpcRequest) -> list[RpcReply]:
            body = api_pb2.FunctionCallPutDataRequest.FromString(request.body)
            chunks.extend(body.data_chunks)
            return [RpcReply(request.rpc_id, 0, b"")]

        node.server.rpcs["FunctionCallPutDataOut"] = put
        kind = api_pb2.Function.FUNCTION_TYPE_GENERATOR
        task_id = node.start(start_task(function("count", function_type=kind)))
        one = item(3)
        node.server.deliver(task_id, one)
        (output,) = await node.server.done(one.input_id)
        done = api_pb2.GeneratorDone.FromString(output.result.data or b"")
        assert done.items_total == 3
        assert [pickle.loads(chunk.data) for chunk in chunks] == [0, 1, 2]

    run(scenario)


def test_class_enters_serves_and_exits(run) -> None:
    async def scenario(node: Node) -> None:
        definition = function("Counter.*", "classes", is_class=True)
        task_id = node.start(start_task(definition))
        items = [item(n, method="add") for n in (1, 2)]
        node.server.deliver(task_id, *items)
        outputs = await node.server.done(*(one.input_id for one in items))
        assert [value(one) for one in outputs] == [1, 3]
        node.server.send(StopTask(task_id, False, 10.0))
        exited = await node.server.first(TaskExited)
        assert exited.returncode == 0
        assert node.server.text(1) == "entered\nexited\n"

    run(scenario)


def test_exception_becomes_a_failure_with_traceback(run) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("fail")))
        one = item("my words")
        node.server.deliver(task_id, one)
        (output,) = await node.server.done(one.input_id)
        assert output.result.status == STATUS_FAILURE
        assert "my words" in output.result.exception
        assert isinstance(pickle.loads(output.result.data or b""), ValueError)

    run(scenario)


@pytest.mark.parametrize("name", ["sleep", "asleep"])
def test_cancelled_input_ends_and_the_container_goes_on(run, name: str) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function(name)))
        doomed, waiting, after = item(60), item(61), item(0)
        node.server.deliver(task_id, doomed, waiting, after)
        await node.server.first(InputsStarted)
        node.server.send(CancelInputs(task_id, [doomed.input_id, waiting.input_id]))
        first, second, third = await node.server.done(
            doomed.input_id, waiting.input_id, after.input_id
        )
        assert first.result.status == second.result.status == STATUS_TERMINATED
        assert value(third) == 0
        assert not node.server.all(TaskExited)

    run(scenario)


def test_input_over_its_timeout_is_reported_and_the_container_goes_on(run) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("sleep"), input_timeout_s=0.5))
        late, after = item(60), item(0)
        node.server.deliver(task_id, late, after)
        first, second = await node.server.done(late.input_id, after.input_id)
        assert first.result.status == STATUS_TIMEOUT
        assert "0.5 s" in first.result.exception
        assert value(second) == 0
        assert [one.input_id for one in node.server.outputs()].count(late.input_id) == 1
        assert not node.server.all(TaskExited)

    run(scenario)


def test_stubborn_input_is_killed_with_its_container(run, monkeypatch) -> None:
    monkeypatch.setattr("homeport.node.work.TIMEOUT_GRACE_S", 0.2)
    monkeypatch.setattr("homeport.node.work.INTERRUPT_GRACE_S", 0.2)

    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("stubborn"), input_timeout_s=0.2))
        late, after = item(60), item(0)
        node.server.deliver(task_id, late, after)
        exited = await node.server.first(TaskExited)
        assert exited.returncode == -9
        assert late.input_id in exited.reason
        assert exited.unfinished == []
        (output,) = node.server.outputs()
        assert (output.input_id, output.result.status) == (late.input_id, STATUS_TIMEOUT)
        returned = [key for message in node.server.all(InputsReturned) for key in message.inputs]
        assert returned + exited.unstarted == [(after.input_id, 0)]

    run(scenario)


def test_batch_is_collected_and_answered_together(run) -> None:
    async def scenario(node: Node) -> None:
        definition = function("batch", batch_max_size=3, batch_linger_ms=50)
        task_id = node.start(start_task(definition))
        items = [item(n) for n in (1, 2, 3, 10)]
        node.server.deliver(task_id, *items)
        outputs = await node.server.done(*(one.input_id for one in items))
        assert [value(one) for one in outputs] == [6, 6, 6, 10]

    run(scenario)


def test_input_that_waits_behind_another_comes_back_by_itself(run, monkeypatch) -> None:
    monkeypatch.setattr("homeport.node.work.PATIENCE_S", 0.1)

    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("sleep")))
        running, waiting = item(1.0), item(0)
        node.server.deliver(task_id, running, waiting)
        returned = await node.server.first(InputsReturned)
        assert returned.inputs == [(waiting.input_id, 0)]
        await node.server.done(running.input_id)

    run(scenario)


def test_recalled_inputs_that_have_not_started_come_back(run) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("stubborn")))
        running, waiting = item(1.0), item(0)
        node.server.deliver(task_id, running, waiting)
        await node.server.first(InputsStarted)
        keys = [(one.input_id, 0) for one in (running, waiting)]
        node.server.send(RecallInputs(task_id, keys))
        returned = await node.server.first(InputsReturned)
        assert returned.inputs == [(waiting.input_id, 0)]
        await node.server.done(running.input_id)

    run(scenario)


def test_cancelled_batch_gives_its_innocents_back(run) -> None:
    async def scenario(node: Node) -> None:
        definition = function("batch_sleep", batch_max_size=2, batch_linger_ms=1000)
        task_id = node.start(start_task(definition))
        guilty, innocent = item(60), item(60)
        node.server.deliver(task_id, guilty, innocent)
        await node.server.first(InputsStarted)
        node.server.send(CancelInputs(task_id, [guilty.input_id]))
        (output,) = await node.server.done(guilty.input_id)
        assert output.result.status == STATUS_TERMINATED
        returned = await node.server.first(InputsReturned)
        assert returned.inputs == [(innocent.input_id, 0)]
        # It may come again to the same container.
        again = item(0.0, input_id=innocent.input_id)
        node.server.deliver(task_id, again)
        (output,) = await node.server.done(innocent.input_id)
        assert value(output) == 0.0

    run(scenario)


def test_concurrent_inputs_run_side_by_side_and_one_is_cancelled_alone(run) -> None:
    async def scenario(node: Node) -> None:
        definition = function("asleep", max_concurrent_inputs=3)
        task_id = node.start(start_task(definition))
        doomed, slow, quick = item(60), item(60), item(0)
        node.server.deliver(task_id, doomed, slow, quick)
        (output,) = await node.server.done(quick.input_id)
        assert value(output) == 0
        node.server.send(CancelInputs(task_id, [doomed.input_id]))
        (output,) = await node.server.done(doomed.input_id)
        assert output.result.status == STATUS_TERMINATED
        assert node.server.output(slow.input_id) is None
        assert not node.server.all(InputsReturned)

    run(scenario)


def test_cancelled_thread_takes_the_container_down_but_not_its_neighbours(run) -> None:
    async def scenario(node: Node) -> None:
        definition = function("sleep", max_concurrent_inputs=2)
        task_id = node.start(start_task(definition))
        doomed, innocent = item(60), item(60)
        node.server.deliver(task_id, doomed, innocent)
        await node.server.until(
            lambda: sum(len(each.inputs) for each in node.server.all(InputsStarted)) == 2
        )
        node.server.send(CancelInputs(task_id, [doomed.input_id]))
        exited = await node.server.first(TaskExited)
        assert exited.unstarted == [(innocent.input_id, 0)]
        assert exited.unfinished == []
        (output,) = node.server.outputs()
        assert (output.input_id, output.result.status) == (doomed.input_id, STATUS_TERMINATED)

    run(scenario)


def test_import_error_is_reported_before_the_exit(run) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("f", "broken")))
        node.server.deliver(task_id, one := item())
        exited = await node.server.first(TaskExited)
        failed = node.server.all(TaskInitFailed)[0]
        assert failed.task_id == task_id
        assert "this module does not import" in failed.result.exception
        assert not exited.was_ready
        assert exited.unstarted == [(one.input_id, 0)]

    run(scenario)


def test_failing_enter_is_reported(run) -> None:
    async def scenario(node: Node) -> None:
        node.start(start_task(function("Broken.*", "classes", is_class=True)))
        await node.server.first(TaskExited)
        assert "no luck" in node.server.all(TaskInitFailed)[0].result.exception
        assert not node.server.all(TaskReady)

    run(scenario)


def test_crash_is_reported_with_its_input_and_last_words(run) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("crash")))
        one, two = item(7), item(8)
        node.server.deliver(task_id, one, two)
        exited = await node.server.first(TaskExited)
        assert exited.returncode == 7
        assert exited.unfinished == [(one.input_id, 0)]
        assert exited.unstarted == [(two.input_id, 0)]
        assert "about to crash" in exited.stderr_tail

    run(scenario)


def test_single_use_container_takes_one_input(run) -> None:
    async def scenario(node: Node) -> None:
        definition = function("double", single_use_containers=True)
        task_id = node.start(start_task(definition, single_use=True))
        one, two = item(1), item(2)
        node.server.deliver(task_id, one, two)
        exited = await node.server.first(TaskExited)
        assert exited.returncode == 0
        assert [out.input_id for out in node.server.outputs()] == [one.input_id]
        assert node.server.all(InputsReturned)[0].inputs == [(two.input_id, 0)]

    run(scenario)


def test_startup_timeout_kills(run) -> None:
    async def scenario(node: Node) -> None:
        node.start(start_task(function("never", module="slow"), startup_timeout_s=0.2))
        exited = await node.server.first(TaskExited)
        assert exited.returncode == -9
        assert "startup timeout of 0.2 s" in exited.reason
        assert not exited.was_ready

    run(scenario)


@pytest.mark.parametrize("name", ["sleep", "asleep"])
def test_interrupted_container_gives_its_input_back(run, name: str) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function(name)))
        node.server.deliver(task_id, one := item(60))
        await node.server.until(lambda: "begun" in node.server.text(1))
        node.server.send(StopTask(task_id, False, 10.0))
        exited = await node.server.first(TaskExited)
        returned = [key for message in node.server.all(InputsReturned) for key in message.inputs]
        assert returned + exited.unfinished == [(one.input_id, 0)]
        assert not node.server.outputs()
        assert exited.returncode == 0

    run(scenario)


def test_task_goes_on_and_outputs_arrive_after_the_server_was_away(run) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("asleep")))
        one = item(0.3)
        node.server.deliver(task_id, one)
        await node.server.first(InputsStarted)
        await node.server.stop()
        await asyncio.sleep(1.5)  # an idle container without an endpoint would exit
        await node.server.start()
        (output,) = await node.server.done(one.input_id)
        assert value(output) == 0.3
        assert node.server.hellos[-1].running[0].inputs == [(one.input_id, 0)]
        node.server.deliver(task_id, two := item(0))
        (output,) = await node.server.done(two.input_id)
        assert output.result.status == STATUS_SUCCESS

    run(scenario)


def test_unacknowledged_output_is_sent_again(run) -> None:
    async def scenario(node: Node) -> None:
        node.server.acknowledges = False
        task_id = node.start(start_task(function("double")))
        node.server.deliver(task_id, one := item(4))
        await node.server.done(one.input_id)
        node.server.messages.clear()
        node.server.acknowledges = True
        await node.server.stop()
        await node.server.start()
        (output,) = await node.server.done(one.input_id)
        assert value(output) == 8

    run(scenario)


def test_input_the_server_gave_away_is_dropped(run) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("asleep")))
        gone, waiting = item(60), item(61)
        node.server.deliver(task_id, gone, waiting)
        await node.server.first(InputsStarted)
        await node.server.stop()
        node.server.known = lambda _: []
        await node.server.start()
        await node.server.until(lambda: len(node.server.hellos) == 2)
        node.server.deliver(task_id, after := item(0))
        (output,) = await node.server.done(after.input_id)
        assert value(output) == 0
        assert [out.input_id for out in node.server.outputs()] == [after.input_id]

    run(scenario)


def test_what_was_ready_without_a_connection_is_told_on_the_next(run) -> None:
    """Else the server would wait for it for ever, and give it nothing."""

    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("double")))
        while (task := node.supervisor.find(task_id)) is None:
            await asyncio.sleep(0.01)
        await node.server.stop()
        while not task.running().ready:
            await asyncio.sleep(0.01)
        assert not node.server.all(TaskReady)
        await node.server.start()
        first = await node.server.first(TaskReady)
        await node.server.stop()
        await node.server.start()
        await node.server.first(TaskReady, 2)
        again = node.server.all(TaskReady)[1]
        assert (first.task_id, first.time) == (again.task_id, again.time)
        node.server.send(StopTask(task_id, True, 5.0))
        await node.server.first(TaskExited)

    run(scenario)


def test_lost_task_is_ended(run) -> None:
    async def scenario(node: Node) -> None:
        task_id = node.start(start_task(function("double")))
        await node.server.first(TaskReady)
        await node.server.stop()
        node.server.lost = [task_id]
        await node.server.start()
        exited = await node.server.first(TaskExited)
        assert exited.task_id == task_id

    run(scenario)


def test_start_that_the_runtime_refuses_is_reported(run) -> None:
    async def scenario(node: Node) -> None:
        node.runtime.error = ContainerStartError("no such tool")
        task_id = node.start(start_task(function("double")))
        node.server.deliver(task_id, one := item(1))
        exited = await node.server.first(TaskExited)
        assert exited.start_failed
        assert exited.reason == "no such tool"
        assert exited.unstarted == [(one.input_id, 0)]

    run(scenario)


def test_untrusted_container_reaches_only_its_own_loop(run) -> None:
    async def scenario(node: Node) -> None:
        kind = api_pb2.Function.FUNCTION_TYPE_GENERATOR
        node.server.rpcs["FunctionCallPutDataOut"] = lambda request: [
            RpcReply(request.rpc_id, 0, b"")
        ]
        start = start_task(function("count", function_type=kind), untrusted=True)
        task_id = node.start(start)
        node.server.deliver(task_id, one := item(2))
        (output,) = await node.server.done(one.input_id)
        assert output.result.status == STATUS_SUCCESS

    run(scenario)
