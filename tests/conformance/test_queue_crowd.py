"""Ten thousand getters wait at once on a real server; each put wakes one of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from grpclib.client import Channel, UnaryUnaryMethod
from modal_proto import api_pb2
from tests.conformance.harness.bare import BareServer

GETTERS = 10_000
CONNECTIONS = 4
SERVICE = "/modal.client.ModalClient/"


async def crowd(server: BareServer) -> None:
    environ = server.environment()
    metadata = {
        "x-modal-client-version": "1.6.4",
        "x-modal-client-type": "1",
        "x-modal-token-id": environ["MODAL_TOKEN_ID"],
        "x-modal-token-secret": environ["MODAL_TOKEN_SECRET"],
    }
    port = int(server.url.rpartition(":")[2])
    channels = [Channel("127.0.0.1", port) for _ in range(CONNECTIONS)]

    async def call(number: int, name: str, request: object, reply: type) -> object:
        channel = channels[number % CONNECTIONS]
        method = UnaryUnaryMethod(channel, SERVICE + name, type(request), reply)
        key = {"x-idempotency-key": f"{name} {number}"}
        return await method(request, metadata={**metadata, **key})

    try:
        made = await call(
            0,
            "QueueGetOrCreate",
            api_pb2.QueueGetOrCreateRequest(
                deployment_name="crowd",
                object_creation_type=api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
            ),
            api_pb2.QueueGetOrCreateResponse,
        )
        queue_id = made.queue_id  # type: ignore[attr-defined]
        get = api_pb2.QueueGetRequest(queue_id=queue_id, timeout=300, n_values=1)
        getters = [
            asyncio.create_task(call(n, "QueueGet", get, api_pb2.QueueGetResponse))
            for n in range(GETTERS)
        ]
        async with asyncio.timeout(120):
            await all_wait(server)
        assert not any(getter.done() for getter in getters)
        for begin in range(0, GETTERS, 2500):
            values = [b"%d" % n for n in range(begin, begin + 2500)]
            put = api_pb2.QueuePutRequest(queue_id=queue_id, values=values)
            await call(begin, "QueuePut", put, Empty)
            async with asyncio.timeout(120):
                while sum(getter.done() for getter in getters) < begin + 2500:
                    await asyncio.sleep(0.1)
        async with asyncio.timeout(120):
            answers = await asyncio.gather(*getters)
        found = [value for answer in answers for value in answer.values]  # type: ignore[attr-defined]
        assert sorted(map(int, found)) == list(range(GETTERS))
    finally:
        for channel in channels:
            channel.close()


async def all_wait(server: BareServer) -> None:
    """Until the server has taken in all calls and has nothing to do: waiting costs nothing."""
    before = 0.0
    while cpu_s(server) - before > 0.1:
        before = cpu_s(server)
        await asyncio.sleep(1)


def cpu_s(server: BareServer) -> float:
    """Processor time of the server so far."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_ten_thousand_getters_at_once(tmp_path: Path) -> None:
    server = BareServer(tmp_path / "home")
    server.start()
    try:
        asyncio.run(crowd(server))
    finally:
        server.stop()
