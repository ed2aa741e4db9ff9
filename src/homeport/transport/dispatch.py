"""What a transport needs to know about the program above it: a dispatcher of raw messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
ABORTED = 10
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
DATA_LOSS = 15
UNAUTHENTICATED = 16

Trailers = list[tuple[str, str]]
"""Extra trailing metadata; names ending in ``-bin`` carry base64 text."""


class StatusError(Exception):
    """Ends an RPC with a gRPC status other than OK. ``message`` is shown to users verbatim."""

    def __init__(self, status: int, message: str, trailers: Trailers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.trailers: Trailers = trailers or []


@dataclass(slots=True)
class IncomingCall:
    """One RPC as it arrived. Metadata names are lower case; a repeated name keeps its last value."""

    path: str
    """``/package.Service/Method``."""
    metadata: dict[str, str]
    timeout_s: float | None
    """From the ``grpc-timeout`` header; the transport itself ends the RPC when it has passed."""
    peer: str = ""
    trailers: Trailers = field(default_factory=list[tuple[str, str]])
    """The dispatcher may append trailing metadata for a successful answer (e.g. warnings)."""
    interruptible: bool = False
    """The dispatcher sets it while the call only waits (a long poll): a server that stops then
    ends it at once with UNAVAILABLE instead of waiting for it."""


class Dispatcher(Protocol):
    """Answers RPCs. The transport runs each in a task of its own.

    The task is cancelled when the client resets the stream, the connection is lost or the
    deadline passes.
    """

    def is_stream(self, path: str) -> bool | None:
        """Whether ``path`` answers with a stream; ``None`` if there is no such method."""
        ...

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        """The one response message. Raises ``StatusError``."""
        ...

    def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        """The response messages; ends or raises ``StatusError``."""
        ...
