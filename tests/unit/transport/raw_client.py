"""An HTTP/2 client without opinions, for requests that no gRPC library would send."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field
from urllib.parse import unquote

import ngh2

GRPC_HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"test"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def frame(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


@dataclass
class Answer:
    """What came on one stream, all headers and trailers together."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.headers["grpc-status"])

    @property
    def message(self) -> str:
        return unquote(self.headers.get("grpc-message", ""))


class RawClient(asyncio.Protocol):
    def __init__(self) -> None:
        self.http2 = ngh2.Connection(ngh2.Role.CLIENT)
        self.answers: dict[int, Answer] = {}
        self.lost = asyncio.Event()
        self.goaway: int | None = None
        self.continues = asyncio.Event()
        """The server said that it waits for the body."""

    @classmethod
    async def connect(cls, port: int) -> RawClient:
        loop = asyncio.get_running_loop()
        _, self = await loop.create_connection(cls, "127.0.0.1", port)
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.http2.initiate_connection({ngh2.Setting.ENABLE_PUSH: 0})
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        for answer in self.answers.values():
            answer.closed.set()

    def flush(self) -> None:
        self.transport.write(self.http2.data_to_send())
        self.handle()

    def data_received(self, data: bytes) -> None:
        self.http2.receive_data(data)
        self.handle()
        self.flush()

    def handle(self) -> None:
        for event in self.http2.events():
            if isinstance(event, ngh2.GoAwayReceived):
                self.goaway = event.error_code
                continue
            if isinstance(event, ngh2.InformationalResponseReceived):
                self.continues.set()
                continue
            answer = self.answers.get(getattr(event, "stream_id", 0))
            if answer is None:
                continue
            if isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived):
                answer.headers |= {k.decode(): v.decode() for k, v in event.headers}
            elif isinstance(event, ngh2.DataReceived):
                answer.data += event.data
            elif isinstance(event, ngh2.StreamReset):
                answer.reset = event.error_code
            elif isinstance(event, ngh2.StreamClosed):
                answer.closed.set()

    def send(
        self,
        name: str,
        body: bytes | None,
        *,
        end: bool = True,
        headers: dict[str, str] | None = None,
        flush: bool = True,
    ) -> int:
        fields = dict(GRPC_HEADERS) | {b":path": f"/t.S/{name}".encode()}
        fields |= {k.encode(): v.encode() for k, v in (headers or {}).items()}
        ordered = sorted(fields.items(), key=lambda item: not item[0].startswith(b":"))
        stream_id = self.http2.send_request(ordered, end_stream=body is None)
        self.answers[stream_id] = Answer()
        if body is not None:
            self.http2.send_data(stream_id, body, end_stream=end)
        if flush:
            self.flush()
        return stream_id

    async def call(
        self, name: str, body: bytes | None, *, headers: dict[str, str] | None = None
    ) -> Answer:
        answer = self.answers[self.send(name, body, headers=headers)]
        await answer.closed.wait()
        return answer
