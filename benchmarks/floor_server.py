"""The least a server can do for the official client: in memory, answering at once.

No token is checked, nothing is stored, nothing is isolated: plain processes of the client's own
container entry point run a no-op function. What is measured against it is the cost of everything a
platform adds. It runs on ``homeport.transport``, the fastest gRPC server at hand.

    python benchmarks/floor_server.py --containers 2      # prints its URL, ends with its stdin
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import string
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from modal_proto import api_pb2

from homeport.transport.dispatch import UNIMPLEMENTED, IncomingCall, StatusError
from homeport.transport.grpc_server import GrpcServer

SERVICE = "/modal.client.ModalClient/"
HEARTBEAT_S = 14.9
LINGER_S = 0.03
"""How long an answer to a map's poll waits for company: each poll costs the client more than that."""
FUNCTION_ID = "fu-" + "0" * 22
APP_ID = "ap-" + "0" * 22
ALPHABET = string.ascii_letters + string.digits


def new_id(prefix: str) -> str:
    return f"{prefix}-{''.join(secrets.choice(ALPHABET) for _ in range(22))}"


@dataclass
class Call:
    """One function call and the outputs it has so far."""

    is_map: bool
    outputs: list[api_pb2.FunctionGetOutputsItem] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    inputs: int = 0


class Floor:
    """Implements ``homeport.transport.dispatch.Dispatcher`` for the dozen RPCs of a call."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._inputs: dict[str, tuple[Call, int]] = {}
        self._ready: deque[api_pb2.FunctionGetInputsItem] = deque()
        self._waiting: deque[asyncio.Future[api_pb2.FunctionGetInputsItem]] = deque()
        self.containers = 0
        self._methods: dict[str, tuple[Callable[[bytes], Message], Callable[[Any], Any]]] = {
            SERVICE + name: (parse, getattr(self, name)) for name, parse in _REQUESTS.items()
        }

    def is_stream(self, path: str) -> bool | None:
        return False if path in self._methods else None

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        parse, method = self._methods[call.path]
        answer = await method(parse(body))
        return answer.SerializeToString()

    def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        raise StatusError(UNIMPLEMENTED, "the floor has no streams")

    async def FunctionGet(self, request: api_pb2.FunctionGetRequest) -> Message:
        formats = [api_pb2.DATA_FORMAT_PICKLE, api_pb2.DATA_FORMAT_CBOR]
        data = api_pb2.FunctionData(function_name="noop")
        data.ranked_functions.add(rank=0).function.CopyFrom(definition())
        return api_pb2.FunctionGetResponse(
            function_id=FUNCTION_ID,
            handle_metadata=api_pb2.FunctionHandleMetadata(
                function_name="noop",
                function_type=api_pb2.Function.FUNCTION_TYPE_FUNCTION,
                app_id=APP_ID,
                supported_input_formats=formats,
                supported_output_formats=formats,
            ),
            function=data,
        )

    async def FunctionMap(self, request: api_pb2.FunctionMapRequest) -> Message:
        call_id = new_id("fc")
        is_map = request.function_call_type == api_pb2.FUNCTION_CALL_TYPE_MAP
        call = self._calls[call_id] = Call(is_map)
        return api_pb2.FunctionMapResponse(
            function_call_id=call_id,
            pipelined_inputs=[self._put(call_id, call, item) for item in request.pipelined_inputs],
            function_call_jwt="jwt",
            max_inputs_outstanding=1000,
        )

    async def FunctionPutInputs(self, request: api_pb2.FunctionPutInputsRequest) -> Message:
        call = self._calls[request.function_call_id]
        return api_pb2.FunctionPutInputsResponse(
            inputs=[self._put(request.function_call_id, call, item) for item in request.inputs]
        )

    def _put(
        self, call_id: str, call: Call, item: api_pb2.FunctionPutInputsItem
    ) -> api_pb2.FunctionPutInputsResponseItem:
        input_id = new_id("in")
        call.inputs += 1
        self._inputs[input_id] = (call, item.idx)
        work = api_pb2.FunctionGetInputsItem(
            input_id=input_id, function_call_id=call_id, input=item.input
        )
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(work)
                break
        else:
            self._ready.append(work)
        return api_pb2.FunctionPutInputsResponseItem(
            idx=item.idx, input_id=input_id, input_jwt=input_id
        )

    async def FunctionGetOutputs(self, request: api_pb2.FunctionGetOutputsRequest) -> Message:
        call = self._calls[request.function_call_id]
        seen = int(request.last_entry_id.partition("-")[0] or 0) if call.is_map else 0
        try:
            async with asyncio.timeout(request.timeout):
                while len(call.outputs) <= seen:
                    call.changed.clear()
                    await call.changed.wait()
                if call.is_map and len(call.outputs) < call.inputs:
                    await asyncio.sleep(LINGER_S)
        except TimeoutError:
            pass
        outputs = call.outputs[seen:]
        if request.clear_on_success and (outputs or request.timeout == 0):
            del self._calls[request.function_call_id]
        return api_pb2.FunctionGetOutputsResponse(
            outputs=outputs,
            last_entry_id=f"{seen + len(outputs)}-0",
            num_unfinished_inputs=call.inputs - len(call.outputs),
        )

    async def ContainerHello(self, request: Message) -> Message:
        self.containers += 1
        return _EMPTY

    async def ContainerHeartbeat(self, request: Message) -> Message:
        await asyncio.sleep(HEARTBEAT_S)
        return api_pb2.ContainerHeartbeatResponse()

    async def FunctionGetInputs(self, request: Message) -> Message:
        if self._ready:
            return api_pb2.FunctionGetInputsResponse(inputs=[self._ready.popleft()])
        waiter: asyncio.Future[api_pb2.FunctionGetInputsItem]
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        return api_pb2.FunctionGetInputsResponse(inputs=[await waiter])

    async def FunctionPutOutputs(self, request: api_pb2.FunctionPutOutputsRequest) -> Message:
        for item in request.outputs:
            call, index = self._inputs.pop(item.input_id)
            call.outputs.append(
                api_pb2.FunctionGetOutputsItem(
                    result=item.result,
                    idx=index,
                    input_id=item.input_id,
                    data_format=item.data_format,
                    retry_count=item.retry_count,
                )
            )
            call.changed.set()
        return _EMPTY

    async def TaskResult(self, request: api_pb2.TaskResultRequest) -> Message:
        print(f"a container failed: {request.result.traceback}", file=sys.stderr)
        return _EMPTY


_EMPTY = Empty()
_REQUESTS: dict[str, Callable[[bytes], Message]] = {
    "FunctionGet": api_pb2.FunctionGetRequest.FromString,
    "FunctionMap": api_pb2.FunctionMapRequest.FromString,
    "FunctionPutInputs": api_pb2.FunctionPutInputsRequest.FromString,
    "FunctionGetOutputs": api_pb2.FunctionGetOutputsRequest.FromString,
    "FunctionGetInputs": api_pb2.FunctionGetInputsRequest.FromString,
    "FunctionPutOutputs": api_pb2.FunctionPutOutputsRequest.FromString,
    "ContainerHello": Empty.FromString,
    "ContainerHeartbeat": api_pb2.ContainerHeartbeatRequest.FromString,
    "TaskResult": api_pb2.TaskResultRequest.FromString,
}


def definition() -> api_pb2.Function:
    return api_pb2.Function(
        module_name="bench_noop",
        function_name="noop",
        implementation_name="noop",
        function_type=api_pb2.Function.FUNCTION_TYPE_FUNCTION,
        definition_type=api_pb2.Function.DEFINITION_TYPE_FILE,
        is_builder_function=True,  # the function is not decorated: there is no app to find
    )


def container_arguments(number: int) -> bytes:
    metadata = api_pb2.FunctionHandleMetadata(
        function_name="noop", function_type=api_pb2.Function.FUNCTION_TYPE_FUNCTION
    )
    layout = api_pb2.AppLayout(
        objects=[api_pb2.Object(object_id=FUNCTION_ID, function_handle_metadata=metadata)],
        function_ids={"noop": FUNCTION_ID},
    )
    return api_pb2.ContainerArguments(
        task_id=f"ta-{number:026d}",
        function_id=FUNCTION_ID,
        app_id=APP_ID,
        function_def=definition(),
        app_layout=layout,
    ).SerializeToString()


async def start_containers(url: str, count: int, folder: Path) -> list[asyncio.subprocess.Process]:
    """Processes of the client's own container entry point."""
    processes: list[asyncio.subprocess.Process] = []
    for number in range(count):
        arguments = folder / f"arguments-{number}"
        arguments.write_bytes(container_arguments(number))
        environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MODAL_")},
            "MODAL_SERVER_URL": url,
            "MODAL_IS_REMOTE": "1",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(arguments),
            "MODAL_DISABLE_API_PROXY": "1",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        command = (sys.executable, "-m", "modal._container_entrypoint")
        processes.append(await asyncio.create_subprocess_exec(*command, env=environ, cwd=folder))
    return processes


async def serve(containers: int) -> None:
    floor = Floor()
    server = GrpcServer(floor)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server.protocol_factory, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        processes = await start_containers(url, containers, Path(folder))
        try:
            deadline = time.monotonic() + 60
            while len(floor._waiting) < containers:
                assert time.monotonic() < deadline, "the containers of the floor did not start"
                await asyncio.sleep(0.02)
            print(url, flush=True)
            await loop.run_in_executor(None, sys.stdin.read)
        finally:
            for process in processes:
                process.kill()
            await asyncio.gather(*(process.wait() for process in processes))
            listener.close()
            await server.stop(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--containers", type=int, default=2)
    uvloop.run(serve(parser.parse_args().containers))


if __name__ == "__main__":
    main()
