"""The links to nodes: who is connected, what is sent to whom, what is acknowledged."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from homeport.kernel import ids
from homeport.kernel.errors import Code, UnavailableError, error_of
from homeport.kernel.gpus import Gpu
from homeport.kernel.resources import Resources
from homeport.link.framing import FrameProtocol, LinkClosedError
from homeport.link.messages import (
    PROTOCOL,
    STREAM_WINDOW,
    Ack,
    Answer,
    BuildFinished,
    BuildImage,
    BuildLog,
    CancelBuild,
    DropLayers,
    Hello,
    LayersDropped,
    LogEntry,
    Logs,
    LogsTaken,
    Message,
    NodeMessage,
    Ping,
    PruneCaches,
    RouterReply,
    RpcCancel,
    RpcRead,
    RpcRequest,
    RuntimesKnown,
    SandboxSnapshot,
    TaskExited,
    Welcome,
)
from homeport.nodes.routers import RouterAddress, Routers
from homeport.nodes.routing import Routing

log = structlog.get_logger(__name__)

HEARTBEATS_MISSED_MAX = 5
"""A node silent for that many heartbeats is taken for gone."""
REJOIN_GRACE_S = 30.0
"""A node whose link broke may come back with its tasks that long before they count as lost."""

Durable = list[asyncio.Future[None]]


@dataclass(slots=True)
class Adoption:
    """What of a joining node's tasks is still wanted."""

    lost_tasks: list[str] = field(default_factory=list[str])
    known_inputs: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])


class NodeEvents(Protocol):
    """Who acts on what nodes say (the scheduler)."""

    def node_joined(self, node_id: str, hello: Hello) -> Adoption: ...

    def node_lost(self, node_id: str) -> None:
        """The node did not come back within the grace period."""
        ...

    def node_said(self, node_id: str, message: Message) -> Durable:
        """Handle one message; the futures are done when its effects are durable."""
        ...

    def room(self) -> Awaitable[None] | None:
        """What to wait for before hearing more, when too much is not stored yet."""
        ...


class Forwarder(Protocol):
    """Who answers RPCs that containers make through their node."""

    def forward(
        self, request: RpcRequest, reply: Callable[[Message], None], window: Window
    ) -> asyncio.Task[None]: ...


class Window:
    """How much of one streaming RPC's answers may be on their way to its container.

    ``drain`` waits until the connection takes more.
    """

    def __init__(self, drain: Callable[[], Awaitable[None]]) -> None:
        self._drain = drain
        self._unread = 0
        self._room = asyncio.Event()
        self._room.set()

    async def sent(self, size: int) -> None:
        """So many bytes were sent; wait until there is room for more."""
        self._unread += size
        if self._unread > STREAM_WINDOW:
            self._room.clear()
        await self._drain()
        await self._room.wait()

    def read(self, size: int) -> None:
        """So many bytes were taken."""
        self._unread -= size
        if self._unread <= STREAM_WINDOW:
            self._room.set()


ASK_S = 600.0
"""A node that has not answered by then is not going to."""


@dataclass(slots=True)
class _Question:
    node_id: str
    answer: asyncio.Future[Answer]


@dataclass(slots=True)
class _Build:
    node_id: str
    on_log: Callable[[list[LogEntry]], None]
    finished: asyncio.Future[BuildFinished]


class _Acks:
    """Says of numbered messages, in their order, which are durable: ``send`` gets the newest."""

    def __init__(self, send: Callable[[int], None]) -> None:
        self._send = send
        self._waiting: deque[tuple[int, Durable]] = deque()

    def add(self, seq: int, durable: Durable) -> None:
        """``seq`` is, once ``durable`` is done and everything before it is."""
        self._waiting.append((seq, durable))
        for future in durable:
            future.add_done_callback(lambda _f: self._flush())
        self._flush()

    def _flush(self) -> None:
        acked = 0
        while self._waiting and all(future.done() for future in self._waiting[0][1]):
            acked, durable = self._waiting.popleft()
            for future in durable:
                if not future.cancelled() and future.exception() is not None:
                    log.error("a node's report could not be recorded", error=future.exception())
        if acked:
            self._send(acked)


class Session:
    """One node's connection."""

    def __init__(self, service: NodeService) -> None:
        self.node_id = ""
        self.capacity = Resources()
        self.gpus: tuple[Gpu, ...] = ()
        self.runtimes: list[str] = []
        self.last_heard = 0.0
        self.router: RouterAddress | None = None
        self.layers: set[str] = set()
        """The image layers it has, as far as it said."""
        self._service = service
        self._rpcs: dict[int, tuple[asyncio.Task[None], Window]] = {}
        self._acks = _Acks(lambda seq: self._send_quietly(Ack(seq)))
        self._log_acks = _Acks(lambda seq: self._send_quietly(LogsTaken(seq)))
        self.protocol: FrameProtocol[NodeMessage] = FrameProtocol(
            NodeMessage, self._received, self._closed
        )

    def send(self, message: Message) -> None:
        """Send or raise ``LinkClosedError``."""
        self.protocol.send(message)

    def _send_quietly(self, message: Message) -> None:
        """Send what the node will ask for again if it does not arrive."""
        try:
            self.protocol.send(message)
        except LinkClosedError:
            log.debug("answer to a closed link dropped", node_id=self.node_id)

    def _received(self, message: NodeMessage) -> None:
        self.last_heard = asyncio.get_running_loop().time()
        if isinstance(message, Hello):
            self._service.joined(self, message)
        elif not self.node_id:
            self.protocol.close("the first message must be Hello")
        elif isinstance(message, RpcRequest):
            window = Window(self.protocol.drain)
            task = self._service.forward(message, self._send_quietly, window)
            self._rpcs[message.rpc_id] = (task, window)
            task.add_done_callback(lambda _t, key=message.rpc_id: self._rpcs.pop(key, None))
        elif isinstance(message, RpcRead):
            running = self._rpcs.get(message.rpc_id)
            if running is not None:
                running[1].read(message.size)
        elif isinstance(message, RpcCancel):
            running = self._rpcs.get(message.rpc_id)
            if running is not None:
                running[0].cancel()
        elif not isinstance(message, Ping):
            durable = self._service.said(self, message)
            if isinstance(message, Logs):
                self._log_acks.add(message.seq, durable)
                if (room := self._service.room()) is not None:
                    self.protocol.hold_until(room)
            elif (seq := getattr(message, "seq", None)) is not None:
                self._acks.add(seq, durable)

    def _closed(self, error: Exception | None) -> None:
        for task, _ in list(self._rpcs.values()):
            task.cancel()
        self._service.left(self, error)


class NodeService:
    """The connected nodes."""

    def __init__(
        self,
        *,
        authorize: Callable[[str], bool],
        heartbeat_s: float,
        http_url: Callable[[], str],
        blob_root: str,
        routers: Routers,
    ) -> None:
        self._routers = routers
        self._routing = Routing(self.send)
        self._authorize = authorize
        self._heartbeat_s = heartbeat_s
        self._http_url = http_url
        self._blob_root = blob_root
        self._server_id = ids.new("sv")
        self._sessions: dict[str, Session] = {}
        self._builds: dict[str, _Build] = {}
        self._questions: dict[int, _Question] = {}
        self._ask_id = 0
        self._rejoin_timers: dict[str, asyncio.TimerHandle] = {}
        self._events: NodeEvents | None = None
        self._forwarder: Forwarder | None = None
        self._watch: asyncio.Task[None] | None = None

    def use(self, events: NodeEvents, forwarder: Forwarder) -> None:
        """Name who acts on what nodes say; called once, while wiring."""
        self._events = events
        self._forwarder = forwarder

    async def start(self) -> None:
        self._watch = asyncio.create_task(self._watch_heartbeats())

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        for timer in self._rejoin_timers.values():
            timer.cancel()
        for session in list(self._sessions.values()):
            session.protocol.close("the server is stopping")

    # ── connections ─────────────────────────────────────────────────────────────────────────

    def accept(self, token: str) -> FrameProtocol[NodeMessage] | None:
        """The protocol of a new link, or ``None`` when ``token`` is not a node's."""
        if not self._authorize(token):
            log.warning("node refused: wrong token")
            return None
        return Session(self).protocol

    def joined(self, session: Session, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            session.protocol.close(f"link protocol {hello.protocol} is not {PROTOCOL}")
            return
        old = self._sessions.pop(hello.node_id, None)
        session.node_id = hello.node_id
        session.capacity = hello.capacity
        session.gpus = tuple(hello.gpus)
        session.runtimes = hello.runtimes
        session.layers = set(hello.layers)
        if hello.router_port:
            session.router = RouterAddress(hello.router_port, hello.router_host)
        if old is not None:
            old.protocol.close("the node connected again")
        self._sessions[hello.node_id] = session
        timer = self._rejoin_timers.pop(hello.node_id, None)
        if timer is not None:
            timer.cancel()
        assert self._events is not None
        adoption = self._events.node_joined(hello.node_id, hello)
        shown = self._routers.certificate()
        session.send(
            Welcome(
                server_id=self._server_id,
                heartbeat_s=self._heartbeat_s,
                http_url=self._http_url(),
                blob_root=self._blob_root,
                lost_tasks=adoption.lost_tasks,
                known_inputs=adoption.known_inputs,
                router_key=self._routers.key(hello.node_id),
                router_certificate=shown.certificate,
                router_certificate_key=shown.key,
            )
        )
        log.info("node joined", node_id=hello.node_id, capacity=hello.capacity)

    def left(self, session: Session, error: Exception | None) -> None:
        if self._sessions.get(session.node_id) is not session:
            return
        del self._sessions[session.node_id]
        log.warning("node link lost", node_id=session.node_id, error=str(error or ""))
        self._fail_builds(session.node_id)
        self._fail_questions(session.node_id)
        self._routing.lost(session.node_id)
        loop = asyncio.get_running_loop()
        self._rejoin_timers[session.node_id] = loop.call_later(
            REJOIN_GRACE_S, self._lost, session.node_id
        )

    def _lost(self, node_id: str) -> None:
        self._rejoin_timers.pop(node_id, None)
        if self._events is not None:
            self._events.node_lost(node_id)

    async def _watch_heartbeats(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._heartbeat_s)
            limit = loop.time() - HEARTBEATS_MISSED_MAX * self._heartbeat_s
            for session in list(self._sessions.values()):
                if session.last_heard < limit:
                    session.protocol.close("no heartbeat")

    # ── traffic ─────────────────────────────────────────────────────────────────────────────

    def said(self, session: Session, message: Message) -> Durable:
        if isinstance(message, BuildLog):
            build = self._builds.get(message.build_id)
            if build is not None:
                build.on_log(message.entries)
            return []
        if isinstance(message, Answer):
            question = self._questions.pop(message.ask_id, None)
            if question is not None and not question.answer.done():
                question.answer.set_result(message)
            return []
        if isinstance(message, RouterReply):
            self._routing.replied(message)
            return []
        if isinstance(message, RuntimesKnown):
            session.runtimes = message.runtimes
            return []
        if isinstance(message, LayersDropped):
            session.layers.difference_update(message.keys)
            return []
        if isinstance(message, TaskExited) and message.layer:
            session.layers.add(message.layer)
        if isinstance(message, SandboxSnapshot):
            session.layers.update(message.layers)
        if isinstance(message, BuildFinished):
            session.layers.update(message.layers)
            build = self._builds.pop(message.build_id, None)
            if build is not None and not build.finished.done():
                build.finished.set_result(message)
            return []
        assert self._events is not None
        return self._events.node_said(session.node_id, message)

    def room(self) -> Awaitable[None] | None:
        return self._events.room() if self._events is not None else None

    def forward(
        self, request: RpcRequest, reply: Callable[[Message], None], window: Window
    ) -> asyncio.Task[None]:
        assert self._forwarder is not None
        return self._forwarder.forward(request, reply, window)

    def send(self, node_id: str, message: Message) -> bool:
        """Send to a node; ``False`` when it is not connected (its next ``Hello`` settles it)."""
        session = self._sessions.get(node_id)
        if session is None:
            return False
        try:
            session.send(message)
        except LinkClosedError:
            return False
        return True

    async def ask(
        self, node_id: str, make: Callable[[int], Message], timeout_s: float = ASK_S
    ) -> Answer:
        """Send what ``make`` gives for an ``ask_id`` and wait for the node's answer to it.

        Raises the ``HomeportError`` that the node answers with, and ``UnavailableError`` if it is
        not connected or its connection breaks.
        """
        self._ask_id += 1
        ask_id = self._ask_id
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._questions[ask_id] = _Question(node_id, answer)
        try:
            if not self.send(node_id, make(ask_id)):
                raise UnavailableError("the node is not connected now; try again")
            async with asyncio.timeout(timeout_s):
                found = await answer
        except TimeoutError:
            raise UnavailableError(f"the node did not answer within {timeout_s:g} s") from None
        finally:
            self._questions.pop(ask_id, None)
        if found.code:
            raise error_of(Code(found.code), found.message)
        return found

    def _fail_questions(self, node_id: str) -> None:
        for question in self._questions.values():
            if question.node_id == node_id and not question.answer.done():
                question.answer.set_exception(
                    UnavailableError("the connection to the node was lost; try again")
                )

    async def route(
        self, node_id: str, path: str, body: bytes, timeout_s: float | None = None
    ) -> bytes:
        """Have a node's command router answer an RPC. Raises ``HomeportError``."""
        return await self._routing.unary(node_id, path, body, timeout_s)

    def route_stream(self, node_id: str, path: str, body: bytes) -> AsyncIterator[bytes]:
        """The same for a streaming RPC: its messages."""
        return self._routing.stream(node_id, path, body)

    def send_all(self, message: Message) -> None:
        """Send to every connected node."""
        for node_id in list(self._sessions):
            self.send(node_id, message)

    def router(self, node_id: str) -> RouterAddress | None:
        """Where that node's command router is; ``None`` if it is not connected."""
        session = self._sessions.get(node_id)
        return session.router if session is not None else None

    def nodes(self) -> dict[str, Session]:
        """The connected nodes."""
        return self._sessions

    # ── image layers ────────────────────────────────────────────────────────────────────────

    def has_layers(self, keys: Sequence[str]) -> bool:
        """Whether a connected node has all these layers; also if none is connected to ask."""
        sessions = self._sessions.values()
        return not sessions or any(session.layers.issuperset(keys) for session in sessions)

    def found_layers(self, node_id: str, keys: Sequence[str]) -> None:
        """Layers came to a node other than by a build."""
        session = self._sessions.get(node_id)
        if session is not None:
            session.layers.update(keys)

    def drop_layers(self, keys: Sequence[str], *, others: bool = False) -> None:
        """Have every node delete these layers (or all others) that nothing uses."""
        for node_id in list(self._sessions):
            self.send(node_id, DropLayers(list(keys), others))

    async def prune_caches(self) -> int:
        """Have every node delete what builds keep for later ones; the bytes that were freed.

        Raises ``UnavailableError`` if a node goes away meanwhile.
        """
        answers = await asyncio.gather(
            *(self.ask(node_id, PruneCaches) for node_id in list(self._sessions))
        )
        return sum(answer.number for answer in answers)

    # ── builds ──────────────────────────────────────────────────────────────────────────────

    async def build(
        self, message: BuildImage, on_log: Callable[[list[LogEntry]], None]
    ) -> BuildFinished:
        """Build an image on a node. Raises ``UnavailableError`` when none can."""
        if not self._sessions:
            raise UnavailableError("no node is connected to build the image; is `homeport up` ok?")
        node_id = next(iter(self._sessions))
        finished: asyncio.Future[BuildFinished] = asyncio.get_running_loop().create_future()
        self._builds[message.build_id] = _Build(node_id, on_log, finished)
        try:
            if not self.send(node_id, message):
                raise UnavailableError("the node that was to build the image is gone; try again")
            return await finished
        except asyncio.CancelledError:
            self.send(node_id, CancelBuild(message.build_id))
            raise
        finally:
            self._builds.pop(message.build_id, None)

    def _fail_builds(self, node_id: str) -> None:
        for build in list(self._builds.values()):
            if build.node_id == node_id and not build.finished.done():
                build.finished.set_exception(
                    UnavailableError("the node that built the image went away; try again")
                )
