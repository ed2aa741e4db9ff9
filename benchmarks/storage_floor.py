"""The least a server can do for Dicts and Queues: one of each, in memory, answering at once.

python benchmarks/storage_floor.py      # prints its URL, ends with its stdin
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvloop
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from modal_proto import api_pb2

from homeport.transport.dispatch import IncomingCall
from homeport.transport.grpc_server import GrpcServer

SERVICE = "/modal.client.ModalClient/"
EMPTY = Empty()


class Floor:
    """Implements ``homeport.transport.dispatch.Dispatcher`` for the RPCs of ``storage_ops``."""

    def __init__(self) -> None:
        self._entries: dict[bytes, bytes] = {}
        self._items: deque[bytes] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._methods: dict[str, tuple[Callable[[bytes], Message], Callable[[Any], Any]]] = {
            SERVICE + name: (parse, getattr(self, name)) for name, parse in _REQUESTS.items()
        }

    def is_stream(self, path: str) -> bool | None:
        return path == SERVICE + "DictContents" if path in self._methods else None

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        parse, method = self._methods[call.path]
        return (await method(parse(body))).SerializeToString()

    async def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        for key, value in list(self._entries.items()):
            yield api_pb2.DictEntry(key=key, value=value).SerializeToString()

    async def DictContents(self, request: Message) -> None:
        raise AssertionError("it is a stream")

    async def DictGetOrCreate(self, request: Message) -> Message:
        return api_pb2.DictGetOrCreateResponse(dict_id="di-" + "0" * 22)

    async def DictUpdate(self, request: api_pb2.DictUpdateRequest) -> Message:
        self._entries.update((entry.key, entry.value) for entry in request.updates)
        return api_pb2.DictUpdateResponse(created=True)

    async def DictGet(self, request: api_pb2.DictGetRequest) -> Message:
        return api_pb2.DictGetResponse(found=True, value=self._entries[request.key])

    async def DictPop(self, request: api_pb2.DictPopRequest) -> Message:
        return api_pb2.DictPopResponse(found=True, value=self._entries.pop(request.key))

    async def DictClear(self, request: Message) -> Message:
        self._entries.clear()
        return EMPTY

    async def QueueGetOrCreate(self, request: Message) -> Message:
        return api_pb2.QueueGetOrCreateResponse(queue_id="qu-" + "0" * 22)

    async def QueueClear(self, request: Message) -> Message:
        self._items.clear()
        return EMPTY

    async def QueuePut(self, request: api_pb2.QueuePutRequest) -> Message:
        self._items.extend(request.values)
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        return EMPTY

    async def QueueGet(self, request: api_pb2.QueueGetRequest) -> Message:
        while not self._items:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        count = min(request.n_values, len(self._items))
        return api_pb2.QueueGetResponse(values=[self._items.popleft() for _ in range(count)])


_REQUESTS: dict[str, Callable[[bytes], Message]] = {
    "DictClear": api_pb2.DictClearRequest.FromString,
    "DictContents": api_pb2.DictContentsRequest.FromString,
    "DictGet": api_pb2.DictGetRequest.FromString,
    "DictGetOrCreate": api_pb2.DictGetOrCreateRequest.FromString,
    "DictPop": api_pb2.DictPopRequest.FromString,
    "DictUpdate": api_pb2.DictUpdateRequest.FromString,
    "QueueClear": api_pb2.QueueClearRequest.FromString,
    "QueueGet": api_pb2.QueueGetRequest.FromString,
    "QueueGetOrCreate": api_pb2.QueueGetOrCreateRequest.FromString,
    "QueuePut": api_pb2.QueuePutRequest.FromString,
}


async def serve() -> None:
    server = GrpcServer(Floor())
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server.protocol_factory, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    listener.close()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve())
