"""The official client's own channel and stubs over the transport."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpclib
import pytest
from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal._utils import grpc_utils
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientStub
from tests.unit.transport.harness import Client, Recorder, run

from homeport.transport import dispatch
from homeport.transport.dispatch import IncomingCall, StatusError
from homeport.transport.grpc_server import GrpcServer


class Platform(Recorder):
    async def unary_ClientHello(self, call: IncomingCall, body: bytes) -> bytes:
        call.trailers.append(("x-modal-warning", "careful"))
        return api_pb2.ClientHelloResponse(warning="hello").SerializeToString()

    async def unary_AppStop(self, call: IncomingCall, body: bytes) -> bytes:
        request = api_pb2.AppStopRequest.FromString(body)
        raise StatusError(dispatch.NOT_FOUND, f"there is no app “{request.app_id}”")

    async def stream_AppGetLogs(self, call: IncomingCall, body: bytes) -> Any:
        for number in range(3):
            yield api_pb2.TaskLogsBatch(entry_id=str(number)).SerializeToString()


@pytest.mark.parametrize("kind", ["http", "unix"])
def test_stubs_of_the_official_client(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "s.sock" if kind == "unix" else None

    async def scenario(recorder: Recorder, _: GrpcServer, client: Client) -> None:
        server = GrpcServer(Platform())
        loop = asyncio.get_running_loop()
        if path is None:
            listening = await loop.create_server(server.protocol_factory, "127.0.0.1", 0)
            url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        else:
            listening = await loop.create_unix_server(server.protocol_factory, str(path))
            url = f"unix:{path}"
        channel = grpc_utils.create_channel(url, {"x-modal-client-version": "1.6.4"})
        stub = ModalClientStub(channel)
        with pytest.warns(Warning, match="careful"):
            assert (await stub.ClientHello(Empty())).warning == "hello"
        with pytest.raises(grpclib.GRPCError) as caught:
            await stub.AppStop(api_pb2.AppStopRequest(app_id="ap-ü"))
        assert caught.value.status is Status.NOT_FOUND
        assert caught.value.message == "there is no app “ap-ü”"
        batches = await stub.AppGetLogs(api_pb2.AppGetLogsRequest())
        assert [batch.entry_id for batch in batches] == ["0", "1", "2"]
        channel.close()
        listening.close()
        await server.stop(0)

    run(scenario)
