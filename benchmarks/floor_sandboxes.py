"""The least a server can do for sandboxes: in memory, answering at once, running nothing.

Every sandbox exists as soon as it is asked for, every program has printed ``hello`` and ended. What
is measured against it is all that a platform adds to what the official client itself costs.

    python benchmarks/floor_sandboxes.py      # prints its URL, ends with its stdin
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from modal_proto import api_pb2
from modal_proto import task_command_router_pb2 as router_pb2

from homeport.transport.dispatch import UNIMPLEMENTED, IncomingCall, StatusError
from homeport.transport.grpc_server import GrpcServer

CONTROL = "/modal.client.ModalClient/"
ROUTER = "/modal.task_command_router.TaskCommandRouter/"
OUTPUT = b"hello\n"
APP_ID = "ap-" + "0" * 22
IMAGE_ID = "im-" + "0" * 22
TASK_ID = "ta-" + "0" * 25 + "V"


def token() -> str:
    """What looks like a token that is good for an hour."""
    parts = ({"alg": "none"}, {"exp": int(time.time()) + 3600}, {})
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in parts)
    return b".".join(part.rstrip(b"=") for part in encoded).decode()


class Floor:
    """Implements ``homeport.transport.dispatch.Dispatcher`` for a sandbox and its programs."""

    def __init__(self) -> None:
        self.url = ""
        self._made = 0
        self._requests: dict[str, type[Message]] = {}
        for prefix, service in (
            (CONTROL, api_pb2.DESCRIPTOR.services_by_name["ModalClient"]),
            (ROUTER, router_pb2.DESCRIPTOR.services_by_name["TaskCommandRouter"]),
        ):
            for method in service.methods:
                self._requests[prefix + method.name] = GetMessageClass(method.input_type)

    def is_stream(self, path: str) -> bool | None:
        if path == ROUTER + "TaskExecStdioRead":
            return True
        return False if hasattr(self, path.rpartition("/")[2]) else None

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        method = getattr(self, call.path.rpartition("/")[2])
        return method(self._requests[call.path].FromString(body)).SerializeToString()

    async def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        if call.path != ROUTER + "TaskExecStdioRead":
            raise StatusError(UNIMPLEMENTED, f"the floor has no {call.path}")
        request: Any = self._requests[call.path].FromString(body)
        stdout = router_pb2.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDOUT
        if request.file_descriptor == stdout and request.offset < len(OUTPUT):
            answer = router_pb2.TaskExecStdioReadResponse(data=OUTPUT[request.offset :])
            yield answer.SerializeToString()

    # ── the control plane ─────────────────────────────────────────────────────────────────────

    def AppGetOrCreate(self, request: Message) -> Message:
        return api_pb2.AppGetOrCreateResponse(app_id=APP_ID)

    def EnvironmentGetOrCreate(self, request: Message) -> Message:
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06")
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id="en-" + "0" * 22,
            metadata=api_pb2.EnvironmentMetadata(name="main", settings=settings),
        )

    def ImageGetOrCreate(self, request: Message) -> Message:
        done = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
        return api_pb2.ImageGetOrCreateResponse(image_id=IMAGE_ID, result=done)

    def AuthTokenGet(self, request: Message) -> Message:
        return api_pb2.AuthTokenGetResponse(token=token())

    def SandboxCreateV2(self, request: Message) -> Message:
        self._made += 1
        return api_pb2.SandboxCreateV2Response(
            sandbox_id=f"sb-{self._made:026d}",
            task_id=TASK_ID,
            metadata=api_pb2.SandboxHandleMetadata(app_id=APP_ID),
            command_router_access={"url": self.url, "jwt": token()},
        )

    def SandboxTerminateV2(self, request: Message) -> Message:
        return api_pb2.SandboxTerminateResponse()

    def SandboxWaitV2(self, request: Message) -> Message:
        done = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)
        return api_pb2.SandboxWaitResponse(result=done)

    # ── the command router ────────────────────────────────────────────────────────────────────

    def TaskExecStart(self, request: Message) -> Message:
        return router_pb2.TaskExecStartResponse()

    def TaskExecWait(self, request: Message) -> Message:
        return router_pb2.TaskExecWaitResponse(code=0)


async def serve() -> None:
    floor = Floor()
    server = GrpcServer(floor)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server.protocol_factory, "127.0.0.1", 0)
    floor.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    print(floor.url, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    listener.close()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve())
