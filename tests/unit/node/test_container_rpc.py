"""Which RPCs of a container are answered here, which are passed on, which are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from modal_proto import api_pb2

from homeport.link.messages import OutputItem, Result
from homeport.node import wire
from homeport.node.container_rpc import ContainerDispatcher
from homeport.node.work import Grant
from homeport.transport.dispatch import (
    INVALID_ARGUMENT,
    PERMISSION_DENIED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    IncomingCall,
    StatusError,
    Trailers,
)
from homeport.transport.recording import Recorder

from .harness import item


class Container:
    """A container that remembers what it was told."""

    task_id = "ta-1"
    untrusted = False

    def __init__(self) -> None:
        self.grant: Grant | Exception = Grant(())
        self.said: list[object] = []
        self.cancels: list[str] = []

    async def get_inputs(self, concurrency: int) -> Grant:
        self.said.append(concurrency)
        if isinstance(self.grant, Exception):
            raise self.grant
        return self.grant

    async def heartbeat(self, hold_s: float) -> list[str]:
        self.said.append(hold_s)
        return self.cancels

    def put_outputs(self, items: list[OutputItem]) -> None:
        self.said.extend(items)

    def concurrency(self, target: int, maximum: int) -> int:
        return target + maximum

    def init_failed(self, result: Result) -> None:
        self.said.append(result)

    def greeted(self) -> None:
        self.said.append("hello")

    def checkpoint(self) -> None:
        self.said.append("checkpoint")

    def stop_fetching(self) -> None:
        self.said.append("stop")

    def server_ready(self) -> None:
        self.said.append("ready")

    def owns_call(self, call_id: str) -> bool:
        return call_id == "fc-mine"


class Server:
    """The way up, as an echo."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def unary(
        self, task_id: str, path: str, metadata: object, body: bytes, timeout_s: float | None
    ) -> tuple[bytes, Trailers]:
        self.paths.append(path)
        return body + b"!", [("t", "1")]

    async def stream(
        self, task_id: str, path: str, metadata: object, body: bytes, timeout_s: float | None
    ) -> AsyncIterator[bytes]:
        self.paths.append(path)
        yield b"one"
        yield b"two"


@pytest.fixture
def container() -> Container:
    return Container()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def dispatcher(container: Container, server: Server) -> ContainerDispatcher:
    return ContainerDispatcher(container, server)


def call(name: str, timeout_s: float | None = None) -> IncomingCall:
    return IncomingCall(wire.PREFIX + name, {}, timeout_s)


def ask(dispatcher: ContainerDispatcher, incoming: IncomingCall, body: bytes = b"") -> bytes:
    return asyncio.run(dispatcher.unary(incoming, body))


def test_streams_are_known_from_the_descriptor(dispatcher: ContainerDispatcher) -> None:
    assert dispatcher.is_stream(wire.PREFIX + "FunctionCallGetDataIn") is True
    assert dispatcher.is_stream(wire.PREFIX + "FunctionGetInputs") is False
    assert dispatcher.is_stream(wire.PREFIX + "NoSuchThing") is None


def test_inputs_are_answered_as_the_client_expects(
    dispatcher: ContainerDispatcher, container: Container
) -> None:
    one = item(1, method="add", final=True)
    blob = item(2, args=None, args_blob_id="bl-1")
    container.grant = Grant((one, blob))
    incoming = call("FunctionGetInputs")
    body = api_pb2.FunctionGetInputsRequest(input_concurrency=3).SerializeToString()
    answer = api_pb2.FunctionGetInputsResponse.FromString(ask(dispatcher, incoming, body))
    first, second = answer.inputs
    assert container.said == [3]
    assert incoming.interruptible
    assert (first.input_id, first.function_call_id) == (one.input_id, one.call_id)
    assert (first.input.method_name, first.input.final_input) == ("add", True)
    assert first.input.args == one.args
    assert not second.input.HasField("method_name")
    assert second.input.args_blob_id == "bl-1"
    assert not any(each.kill_switch for each in answer.inputs)


def test_kill_switch_is_alone(dispatcher: ContainerDispatcher) -> None:
    answer = api_pb2.FunctionGetInputsResponse.FromString(
        ask(dispatcher, call("FunctionGetInputs"))
    )
    assert [each.kill_switch for each in answer.inputs] == [True]


def test_defect_in_get_inputs_is_retryable_for_the_container(
    dispatcher: ContainerDispatcher, container: Container
) -> None:
    container.grant = RuntimeError("a defect")
    with pytest.raises(StatusError) as caught:
        ask(dispatcher, call("FunctionGetInputs"))
    assert caught.value.status == UNAVAILABLE


def test_heartbeat_is_held_just_under_the_clients_patience(
    dispatcher: ContainerDispatcher, container: Container
) -> None:
    assert ask(dispatcher, call("ContainerHeartbeat", 15.1)) == b""
    container.cancels = ["in-1", "in-2"]
    answer = api_pb2.ContainerHeartbeatResponse.FromString(
        ask(dispatcher, call("ContainerHeartbeat"))
    )
    assert list(answer.cancel_input_event.input_ids) == ["in-1", "in-2"]
    assert container.said == [pytest.approx(14.9), 14.9]


def test_outputs_keep_every_field(dispatcher: ContainerDispatcher, container: Container) -> None:
    request = api_pb2.FunctionPutOutputsRequest()
    request.outputs.add(
        input_id="in-1",
        retry_count=2,
        input_started_at=1.5,
        output_created_at=2.5,
        data_format=api_pb2.DATA_FORMAT_CBOR,
        result=api_pb2.GenericResult(
            status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE,
            exception="e",
            traceback="t",
            serialized_tb=b"s",
            tb_line_cache=b"c",
            data=b"",
        ),
    )
    request.outputs.add(input_id="in-2", result=api_pb2.GenericResult(data_blob_id="bl-1"))
    ask(dispatcher, call("FunctionPutOutputs"), request.SerializeToString())
    first, second = cast("list[OutputItem]", container.said)
    assert first == OutputItem("in-1", 2, Result(2, "e", "t", b"s", b"c", b"", ""), 4, 1.5, 2.5)
    assert (second.result.data, second.result.data_blob_id) == (None, "bl-1")


def test_reports_reach_the_task(dispatcher: ContainerDispatcher, container: Container) -> None:
    failed = api_pb2.TaskResultRequest(result=api_pb2.GenericResult(status=2, exception="no"))
    ask(dispatcher, call("TaskResult"), failed.SerializeToString())
    ask(dispatcher, call("ContainerServerLifecycleReady"))
    stop = api_pb2.ContainerStopRequest(task_id="ta-1", graceful=True)
    ask(dispatcher, call("ContainerStop"), stop.SerializeToString())
    assert container.said == [Result(2, "no"), "ready", "stop"]


def test_stop_of_another_container_is_the_servers(
    dispatcher: ContainerDispatcher, container: Container, server: Server
) -> None:
    stop = api_pb2.ContainerStopRequest(task_id="ta-2")
    ask(dispatcher, call("ContainerStop"), stop.SerializeToString())
    assert container.said == []
    assert server.paths == [wire.PREFIX + "ContainerStop"]


def test_everything_else_is_passed_on_as_it_is(
    dispatcher: ContainerDispatcher, server: Server
) -> None:
    incoming = call("DictGetOrCreate")
    assert ask(dispatcher, incoming, b"raw") == b"raw!"
    assert incoming.trailers == [("t", "1")]

    async def stream() -> list[bytes]:
        return [one async for one in dispatcher.stream(call("FunctionCallGetDataIn"), b"")]

    assert asyncio.run(stream()) == [b"one", b"two"]


def test_untrusted_container_is_refused_but_for_its_own_data(
    dispatcher: ContainerDispatcher, container: Container, server: Server
) -> None:
    container.untrusted = True
    for name in ("DictGetOrCreate", "FunctionMap", "SecretGetOrCreate"):
        with pytest.raises(StatusError) as caught:
            ask(dispatcher, call(name))
        assert caught.value.status == PERMISSION_DENIED
    foreign = api_pb2.FunctionCallPutDataRequest(function_call_id="fc-other").SerializeToString()
    with pytest.raises(StatusError):
        ask(dispatcher, call("FunctionCallPutDataOut"), foreign)
    assert server.paths == []
    own = api_pb2.FunctionCallPutDataRequest(function_call_id="fc-mine").SerializeToString()
    ask(dispatcher, call("FunctionCallPutDataOut"), own)
    ask(dispatcher, call("BlobCreate"))
    assert len(server.paths) == 2


def test_a_program_says_that_it_is_at_its_memory_snapshot(
    dispatcher: ContainerDispatcher, container: Container
) -> None:
    assert ask(dispatcher, call("ContainerCheckpoint")) == b""
    assert container.said == ["checkpoint"]


def test_bytes_that_are_no_message_are_an_invalid_argument(dispatcher: ContainerDispatcher) -> None:
    with pytest.raises(StatusError) as caught:
        ask(dispatcher, call("FunctionPutOutputs"), b"\xff\xff\xff")
    assert caught.value.status == INVALID_ARGUMENT


def test_what_is_answered_here_is_recorded(
    container: Container, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "recorded.json"
    dispatcher = ContainerDispatcher(container, server, Recorder(file))
    hello = IncomingCall(wire.PREFIX + "ContainerHello", {"x-modal-client-version": "1.0.5"}, None)
    ask(dispatcher, hello)
    ask(dispatcher, call("AppHeartbeat"))  # the server records what is passed on
    container.grant = StatusError(UNIMPLEMENTED, "no")
    with pytest.raises(StatusError):
        ask(dispatcher, call("FunctionGetInputs"))
    assert file.read_text() == '{"ContainerHello": ["1.0.5"]}'
