"""The node's end of the link: what survives a lost connection, and forwarded RPCs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from homeport.link.messages import (
    CancelInputs,
    DeliverInputs,
    InputsReturned,
    LogEntry,
    Logs,
    LogsTaken,
    Outputs,
    Result,
    RpcCancel,
    RpcReply,
    RpcRequest,
    StopTask,
    TaskExited,
    TaskInitFailed,
)
from homeport.node.link import LOGS_AHEAD_BYTES_MAX
from homeport.transport.dispatch import NOT_FOUND, UNAVAILABLE, StatusError

from .harness import Node, item

Scenario = Callable[[Node], Awaitable[None]]
PATH = "/modal.client.ModalClient/AppList"


@pytest.fixture
def run() -> Iterator[Callable[[Scenario], None]]:
    def go(scenario: Scenario) -> None:
        async def main() -> None:
            async with Node(Path(folder)) as node:
                await scenario(node)

        asyncio.run(main())

    with tempfile.TemporaryDirectory(prefix="node-") as folder:
        yield go


def exited(task_id: str) -> TaskExited:
    return TaskExited(0, task_id, 1, False, True, [("in-1", 0)], [("in-2", 1)], "", "")


async def restart(node: Node, hellos: int = 2) -> None:
    await node.server.stop()
    await node.server.start()
    await node.server.until(lambda: len(node.server.hellos) == hellos)


def test_reports_are_repeated_in_order_until_acknowledged(run) -> None:
    async def scenario(node: Node) -> None:
        node.server.acknowledges = False
        node.link.send_sure(Outputs(0, "ta-1", []))
        node.link.send_kept(TaskInitFailed("ta-1", Result(2)))
        node.link.send_sure(exited("ta-1"))
        await node.server.first(TaskExited)
        node.server.messages.clear()
        node.server.acknowledges = True
        await restart(node)
        await node.server.first(TaskExited)
        kinds = [type(message) for message in node.server.messages]
        assert kinds == [Outputs, TaskInitFailed, TaskExited]
        assert await node.link.acknowledged(5.0)
        # A task whose end was not acknowledged is still named, with its inputs.
        (told,) = node.server.hellos[1].running
        assert (told.task_id, told.inputs) == ("ta-1", [("in-1", 0), ("in-2", 1)])

    run(scenario)


def test_acknowledged_reports_are_forgotten(run) -> None:
    async def scenario(node: Node) -> None:
        node.link.send_sure(exited("ta-1"))
        assert await node.link.acknowledged(5.0)
        await restart(node)
        assert node.server.hellos[1].running == []
        assert len(node.server.all(TaskExited)) == 1

    run(scenario)


def test_logs_of_an_outage_arrive_afterwards(run) -> None:
    async def scenario(node: Node) -> None:
        await node.server.stop()
        while node.link.is_up:
            await asyncio.sleep(0.01)
        node.link.logs("ta-1", [LogEntry(1, 1, "while away")])
        await node.server.start()
        message = await node.server.first(Logs)
        assert message.entries[0].data == "while away"

    run(scenario)


def test_logs_are_repeated_before_the_reports_after_them_until_the_server_has_them(run) -> None:
    async def scenario(node: Node) -> None:
        node.server.acknowledges = False
        node.link.logs("ta-1", [LogEntry(1, 1, "one")])
        node.link.logs("ta-2", [LogEntry(1, 2, "two")])
        node.link.send_sure(exited("ta-1"))
        await node.server.first(TaskExited)
        assert not await node.link.acknowledged(0.01)
        said = node.server.all(Logs)
        node.server.messages.clear()
        node.server.acknowledges = True
        await restart(node)
        await node.server.first(TaskExited)
        assert [type(message) for message in node.server.messages] == [Logs, Logs, TaskExited]
        assert node.server.all(Logs) == said
        assert await node.link.acknowledged(5.0)
        await restart(node, hellos=3)
        assert node.server.all(Logs) == said

    run(scenario)


def test_output_that_the_server_does_not_record_holds_its_writers_back(run) -> None:
    async def scenario(node: Node) -> None:
        node.server.acknowledges = False
        while not node.link.is_congested:
            node.link.logs("ta-1", [LogEntry(1, 1, "x" * 60_000)])
            await asyncio.sleep(0)
        waiting = asyncio.create_task(node.link.uncongested())
        last = 1 + LOGS_AHEAD_BYTES_MAX // 61_000
        await node.server.until(lambda: len(node.server.all(Logs)) >= last)
        assert not waiting.done()
        node.server.send(LogsTaken(last))
        async with asyncio.timeout(5):
            await waiting
        # Without a connection nobody is held back: what is too much then is dropped and counted.
        while not node.link.is_congested:
            node.link.logs("ta-1", [LogEntry(1, 1, "x" * 60_000)])
        waiting = asyncio.create_task(node.link.uncongested())
        await node.server.stop()
        async with asyncio.timeout(5):
            await waiting

    run(scenario)


def test_unary_is_answered_with_body_and_trailers(run) -> None:
    async def scenario(node: Node) -> None:
        seen: list[RpcRequest] = []

        def answer(request: RpcRequest) -> list[RpcReply]:
            seen.append(request)
            return [RpcReply(request.rpc_id, 0, b"answer", "", [("x-modal-warning", "w")])]

        node.server.rpcs["AppList"] = answer
        body, trailers = await node.link.unary("ta-1", PATH, [("a", "b")], b"question", 5.0)
        assert (body, trailers) == (b"answer", [("x-modal-warning", "w")])
        (request,) = seen
        assert (request.task_id, request.metadata, request.body) == (
            "ta-1",
            [("a", "b")],
            b"question",
        )
        assert request.timeout_s == 5.0

    run(scenario)


def test_status_of_the_server_is_the_containers(run) -> None:
    async def scenario(node: Node) -> None:
        node.server.rpcs["AppList"] = lambda request: [
            RpcReply(request.rpc_id, NOT_FOUND, b"", "no such app", [("t", "1")])
        ]
        with pytest.raises(StatusError) as caught:
            await node.link.unary("ta-1", PATH, [], b"", None)
        assert (caught.value.status, caught.value.message) == (NOT_FOUND, "no such app")
        assert caught.value.trailers == [("t", "1")]

    run(scenario)


def test_stream_passes_messages_until_its_end(run) -> None:
    async def scenario(node: Node) -> None:
        node.server.rpcs["AppList"] = lambda request: [
            RpcReply(request.rpc_id, -1, b"one"),
            RpcReply(request.rpc_id, -1, b"two"),
            RpcReply(request.rpc_id, 0, b""),
        ]
        stream = node.link.stream("ta-1", PATH, [], b"", None)
        assert [message async for message in stream] == [b"one", b"two"]

    run(scenario)


def test_cancelled_call_is_cancelled_at_the_server(run) -> None:
    async def scenario(node: Node) -> None:
        node.server.rpcs["AppList"] = lambda _: None
        call = asyncio.create_task(node.link.unary("ta-1", PATH, [], b"", None))
        request = await node.server.first(RpcRequest)
        call.cancel()
        cancelled = await node.server.first(RpcCancel)
        assert cancelled.rpc_id == request.rpc_id

    run(scenario)


def test_calls_under_way_fail_with_the_link_and_new_ones_wait_for_it(run) -> None:
    async def scenario(node: Node) -> None:
        node.server.rpcs["AppList"] = lambda _: None
        call = asyncio.create_task(node.link.unary("ta-1", PATH, [], b"", None))
        await node.server.first(RpcRequest)
        await node.server.stop()
        with pytest.raises(StatusError) as caught:
            await call
        assert caught.value.status == UNAVAILABLE
        waiting = asyncio.create_task(node.link.unary("ta-1", PATH, [], b"", None))
        node.server.rpcs["AppList"] = lambda request: [RpcReply(request.rpc_id, 0, b"back")]
        await node.server.start()
        assert (await waiting)[0] == b"back"

    run(scenario)


def test_call_without_a_server_ends_after_its_patience(run, monkeypatch) -> None:
    monkeypatch.setattr("homeport.node.link.RPC_HOLD_S", 0.05)

    async def scenario(node: Node) -> None:
        await node.server.stop()
        while node.link.is_up:
            await asyncio.sleep(0.01)
        with pytest.raises(StatusError) as caught:
            await node.link.unary("ta-1", PATH, [], b"", None)
        assert caught.value.status == UNAVAILABLE
        await node.server.start()

    run(scenario)


def test_full_outbox_says_so(run, monkeypatch) -> None:
    monkeypatch.setattr("homeport.node.link.OUTBOX_BYTES_MAX", 1000)

    async def scenario(node: Node) -> None:
        node.server.acknowledges = False
        assert not node.link.is_full
        for _ in range(5):
            node.link.send_sure(exited("ta-1"))
        assert node.link.is_full

    run(scenario)


def test_messages_for_tasks_that_are_not_there_do_no_harm(run) -> None:
    async def scenario(node: Node) -> None:
        one = item()
        node.server.send(CancelInputs("ta-gone", [one.input_id]))
        node.server.send(StopTask("ta-gone", True, 1.0))
        node.server.send(DeliverInputs("ta-gone", [one]))
        returned = await node.server.first(InputsReturned)
        assert returned.inputs == [(one.input_id, 0)]

    run(scenario)
