"""The node's end of the link: connects, introduces itself, and loses nothing that must arrive.

What is numbered (``Sequenced``, and logs by numbers of their own) is kept until the server
acknowledged it and is sent again, in order, on each new connection; of logs a bounded amount.
Everything else is said anew by ``Hello`` and may be lost with a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Protocol

import structlog

from homeport.kernel.errors import HomeportError
from homeport.link.framing import FrameProtocol, LinkClosedError
from homeport.link.messages import (
    STREAM_GOES_ON,
    STREAM_WINDOW,
    Ack,
    BuildFinished,
    Hello,
    LogEntry,
    LogsTaken,
    Message,
    OutputItem,
    Outputs,
    Ping,
    RpcCancel,
    RpcRead,
    RpcReply,
    RpcRequest,
    SandboxSnapshot,
    SandboxStarted,
    ServerMessage,
    TaskExited,
    Welcome,
)
from homeport.node.logs import LogOutbox
from homeport.transport.dispatch import (
    OK,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    StatusError,
    Trailers,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

BACKOFF_S = (0.1, 2.0)
WELCOME_TIMEOUT_S = 30.0
OUTBOX_BYTES_MAX = 256 * 1024 * 1024
"""Unacknowledged outputs above which containers are asked to keep theirs for now."""
LOGS_AHEAD_BYTES_MAX = 4 * 1024 * 1024
"""Unacknowledged output above which containers' output is left in their pipes for now."""
RPC_HOLD_S = 60.0
"""How long a container's RPC waits for a lost link to come back."""
STREAM_BYTES_MAX = 256 * 1024 * 1024
"""Answers of one forwarded stream that its container has not read yet."""

Wire = FrameProtocol[ServerMessage]
Connect = Callable[
    [Callable[[ServerMessage], None], Callable[[Exception | None], None]], Awaitable[Wire]
]
"""Opens a connection whose messages go to the first callable and whose end to the second."""
Sequenced = Outputs | TaskExited | BuildFinished | SandboxStarted | SandboxSnapshot


class LinkHandler(Protocol):
    """Who the link speaks for."""

    def hello(self) -> Hello:
        """What to say first on a new connection."""
        ...

    def welcomed(self, welcome: Welcome) -> None:
        """A connection is up; called after what was kept has been sent again."""
        ...

    def handle(self, message: ServerMessage) -> None:
        """Any other message but acknowledgements and RPC replies. Must not block."""
        ...


class _Pending:
    """A forwarded RPC without its end."""

    def __init__(self, rpc_id: int, wire: Wire | None) -> None:
        self.rpc_id = rpc_id
        self.wire = wire
        self.replies: asyncio.Queue[RpcReply] = asyncio.Queue()
        self.size = 0
        self.taken = 0
        """Bytes that were read since the server was told."""


class NodeLink:
    """One node's link, over as many connections as it takes. ``run`` keeps it up."""

    def __init__(self, connect: Connect, *, backoff_s: tuple[float, float] = BACKOFF_S) -> None:
        self._connect = connect
        self._backoff_s = backoff_s
        self._handler: LinkHandler | None = None
        self._wire: Wire | None = None
        self._up = asyncio.Event()
        # Grows over restarts of the node too, so that no acknowledgement can be for an older life.
        self._seq = time.time_ns() // 1000
        self._outbox: deque[tuple[int, int, Message]] = deque()
        self._outbox_bytes = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._acked = asyncio.Event()
        self._logs = LogOutbox()
        self._pending: dict[int, _Pending] = {}
        self._rpc_id = 0
        self.http_url = ""
        """Base URL of the server's HTTP side, from ``Welcome``."""
        self.blob_root = ""

    # ── life ──────────────────────────────────────────────────────────────────────────────────

    async def run(self, handler: LinkHandler) -> None:
        """Connect, serve, reconnect with back-off; ends only by cancellation."""
        self._handler = handler
        delay = self._backoff_s[0]
        said = ""
        while True:
            started = time.monotonic()
            try:
                welcomed = await self._session(handler)
            except (OSError, LinkClosedError, TimeoutError, HomeportError) as error:
                welcomed = False
                text = str(error) or type(error).__name__
                if text != said:
                    log.warning("no link to the server; trying on", error=text)
                    said = text
            if welcomed:
                said = ""
                log.warning("the link to the server was lost")
            if welcomed and time.monotonic() - started > 1.0:
                delay = self._backoff_s[0]
            await asyncio.sleep(delay)
            delay = min(delay * 2, self._backoff_s[1])

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Until a connection is welcomed."""
        await self._up.wait()

    async def _session(self, handler: LinkHandler) -> bool:
        """One connection from dial to end; says whether it was welcomed."""
        closed = asyncio.Event()
        first: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

        def on_message(message: ServerMessage) -> None:
            if isinstance(message, Welcome):
                if not first.done():
                    first.set_result(message)
                    self._begin(wire, message, handler)
            else:
                self._dispatch(message, handler)

        def on_close(_error: Exception | None) -> None:
            closed.set()
            if not first.done():
                first.set_exception(LinkClosedError("the server closed the link before Welcome"))

        wire = await self._connect(on_message, on_close)
        try:
            wire.send(handler.hello())
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                welcome = await first
            log.info("linked to the server", server_id=welcome.server_id)
            await self._ping_until(closed, wire, welcome.heartbeat_s)
            return True
        finally:
            self._lost(wire)
            if not first.done():
                first.cancel()
            elif not first.cancelled():
                first.exception()
            wire.close()

    def _begin(self, wire: Wire, welcome: Welcome, handler: LinkHandler) -> None:
        self._wire = wire
        self.http_url = welcome.http_url.rstrip("/")
        self.blob_root = welcome.blob_root
        for message in self._logs.messages():
            wire.send(message)
        for _, _, message in self._outbox:
            wire.send(message)
        self._up.set()
        handler.welcomed(welcome)

    async def _ping_until(self, closed: asyncio.Event, wire: Wire, every_s: float) -> None:
        while not closed.is_set():
            with contextlib.suppress(LinkClosedError):
                wire.send(Ping(os.getloadavg()[0]))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(every_s, 0.05)):
                    await closed.wait()

    def _lost(self, wire: Wire) -> None:
        if self._wire is not wire:
            return
        self._wire = None
        self._up.clear()
        self._news()
        pending, self._pending = self._pending, {}
        for call in pending.values():
            call.replies.put_nowait(
                RpcReply(0, UNAVAILABLE, b"", "the connection to the server was lost; try again")
            )
        if pending:
            log.warning("forwarded calls failed with the link", count=len(pending))

    def _dispatch(self, message: ServerMessage, handler: LinkHandler) -> None:
        if isinstance(message, RpcReply):
            self._reply(message)
        elif isinstance(message, Ack):
            while self._outbox and self._outbox[0][0] <= message.seq:
                self._outbox_bytes -= self._outbox.popleft()[1]
            self._news()
        elif isinstance(message, LogsTaken):
            self._logs.taken(message.seq)
            self._news()
        else:
            handler.handle(message)

    def _news(self) -> None:
        """Wake who waits for acknowledgements."""
        if not self._outbox and self._logs.is_empty:
            self._empty.set()
        acked, self._acked = self._acked, asyncio.Event()
        acked.set()

    # ── sending ───────────────────────────────────────────────────────────────────────────────

    def send(self, message: Message) -> bool:
        """Send what may be lost with a connection; says whether there is one."""
        if self._wire is None:
            return False
        try:
            self._wire.send(message)
        except LinkClosedError:
            return False
        return True

    def send_sure(self, message: Sequenced) -> None:
        """Number ``message`` (its ``seq`` is set), send it, keep it until it is acknowledged."""
        self._seq += 1
        message.seq = self._seq
        self._keep(self._seq, message)

    def send_kept(self, message: Message) -> None:
        """Send a message without a number so that it also survives a reconnect.

        It is repeated until a later numbered message is acknowledged.
        """
        self._keep(self._seq + 1, message)

    def _keep(self, seq: int, message: Message) -> None:
        size = _size(message)
        self._empty.clear()
        self._outbox.append((seq, size, message))
        self._outbox_bytes += size
        self.send(message)

    async def acknowledged(self, timeout_s: float) -> bool:
        """Wait until everything kept is acknowledged; whether it was within ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        return not self._outbox and self._logs.is_empty

    async def taken(self, seq: int, timeout_s: float | None = None) -> bool:
        """Wait until what was sent with that number is acknowledged; whether it was in time.

        ``timeout_s`` is ``None`` for as long as it takes.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(number == seq for number, _, _ in self._outbox):
                    await self._acked.wait()
                return True
        return False

    @property
    def is_full(self) -> bool:
        """Whether so much is unacknowledged that containers should wait with their outputs."""
        return self._outbox_bytes > OUTBOX_BYTES_MAX

    def unacknowledged(self) -> dict[str, list[tuple[str, int]]]:
        """``(input_id, retry_count)`` in reports that are on their way, by task."""
        found: dict[str, list[tuple[str, int]]] = {}
        for _, _, message in self._outbox:
            if isinstance(message, Outputs):
                keys = [(item.input_id, item.retry_count) for item in message.items]
                found.setdefault(message.task_id, []).extend(keys)
            elif isinstance(message, TaskExited):
                keys = message.unfinished + message.unstarted
                found.setdefault(message.task_id, []).extend(keys)
        return found

    def logs(self, task_id: str, entries: list[LogEntry]) -> None:
        """Send log entries; without a connection a bounded amount of them is kept for the next."""
        self._empty.clear()
        if not self.send(self._logs.add(task_id, entries)):
            self._logs.bound(task_id)

    @property
    def is_congested(self) -> bool:
        """Whether the connection, or the server's disk, takes no more bulk data for now."""
        return self._wire is not None and (
            self._wire.is_congested or self._logs.size > LOGS_AHEAD_BYTES_MAX
        )

    async def uncongested(self) -> None:
        """Until the server takes more, or the connection is gone."""
        while self._wire is not None and self.is_congested:
            if self._wire.is_congested:
                await self._wire.drain()
            else:
                await self._acked.wait()

    # ── forwarded RPCs ────────────────────────────────────────────────────────────────────────

    async def unary(
        self,
        task_id: str,
        path: str,
        metadata: list[tuple[str, str]],
        body: bytes,
        timeout_s: float | None,
    ) -> tuple[bytes, Trailers]:
        """Have the server answer a container's RPC. Raises ``StatusError`` with its status."""
        async with self._call(task_id, path, metadata, body, timeout_s) as call:
            reply = await call.replies.get()
            if reply.status != OK:
                raise StatusError(reply.status, reply.message, reply.trailers)
            return reply.body, reply.trailers

    async def stream(
        self,
        task_id: str,
        path: str,
        metadata: list[tuple[str, str]],
        body: bytes,
        timeout_s: float | None,
    ) -> AsyncIterator[bytes]:
        """The same for a streaming RPC: its messages."""
        async with self._call(task_id, path, metadata, body, timeout_s) as call:
            while True:
                reply = await call.replies.get()
                call.size -= len(reply.body)
                if reply.status == STREAM_GOES_ON:
                    yield reply.body
                    self._taken(call, len(reply.body))
                elif reply.status == OK:
                    return
                else:
                    raise StatusError(reply.status, reply.message, reply.trailers)

    def _taken(self, call: _Pending, size: int) -> None:
        """Let the server send more of a stream, in steps of half of what it may send ahead."""
        call.taken += size
        if call.taken >= STREAM_WINDOW // 2 and call.wire is self._wire:
            self.send(RpcRead(call.rpc_id, call.taken))
            call.taken = 0

    @contextlib.asynccontextmanager
    async def _call(
        self,
        task_id: str,
        path: str,
        metadata: list[tuple[str, str]],
        body: bytes,
        timeout_s: float | None,
    ) -> AsyncGenerator[_Pending]:
        await self._hold()
        self._rpc_id += 1
        rpc_id, wire = self._rpc_id, self._wire
        call = _Pending(rpc_id, wire)
        self._pending[rpc_id] = call
        request = RpcRequest(rpc_id, task_id, path, metadata, body, timeout_s or 0.0)
        try:
            if not self.send(request):
                raise StatusError(UNAVAILABLE, "there is no connection to the server; try again")
            yield call
        except BaseException:
            # Cancelled or given up here: the server need not go on.
            if self._wire is wire and rpc_id in self._pending:
                self.send(RpcCancel(rpc_id))
            raise
        finally:
            self._pending.pop(rpc_id, None)

    async def _hold(self) -> None:
        """Wait out a short loss of the link before sending anything."""
        if self._up.is_set():
            return
        try:
            async with asyncio.timeout(RPC_HOLD_S):
                await self._up.wait()
        except TimeoutError:
            sentence = f"the server has been out of reach for {RPC_HOLD_S:g} s; try again"
            raise StatusError(UNAVAILABLE, sentence) from None

    def _reply(self, reply: RpcReply) -> None:
        call = self._pending.get(reply.rpc_id)
        if call is None:
            return
        if reply.status != STREAM_GOES_ON:
            del self._pending[reply.rpc_id]
        call.size += len(reply.body)
        if call.size > STREAM_BYTES_MAX and reply.status == STREAM_GOES_ON:
            self._pending.pop(reply.rpc_id, None)
            self.send(RpcCancel(reply.rpc_id))
            sentence = f"more than {STREAM_BYTES_MAX} bytes of this stream were left unread"
            reply = RpcReply(reply.rpc_id, RESOURCE_EXHAUSTED, b"", sentence)
        call.replies.put_nowait(reply)


def _size(message: Message) -> int:
    """About how many bytes a kept message holds."""
    if isinstance(message, Outputs):
        return sum(_output_size(item) for item in message.items)
    return 256


def _output_size(item: OutputItem) -> int:
    result = item.result
    parts = (result.exception, result.traceback, result.serialized_tb, result.tb_line_cache)
    return 256 + sum(len(part) for part in parts) + len(result.data or b"")
