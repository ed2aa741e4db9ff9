"""Use cases of sandboxes: create, look up, wait, end; and what nodes say of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import msgspec
import structlog

from homeport.apps.service import AppService
from homeport.kernel.clock import Clock
from homeport.kernel.errors import (
    AlreadyExistsError,
    ConflictError,
    DeadlineError,
    HomeportError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from homeport.kernel.resources import Resources
from homeport.link.messages import (
    HTTPS_PORT,
    STATUS_INIT_FAILURE,
    STATUS_INTERNAL_FAILURE,
    STATUS_OUT_OF_MEMORY,
    STATUS_TERMINATED,
    Answer,
    AskUsage,
    Hello,
    Logs,
    Message,
    OpenTunnel,
    ReloadVolumes,
    SandboxReady,
    SandboxSnapshot,
    SandboxStarted,
    StopTask,
    TakeSnapshot,
    TaskExited,
    UsageSample,
    WriteStdin,
)
from homeport.logs.model import TASK_ACTIVE, TASK_COMPLETED
from homeport.logs.service import LogService
from homeport.nodes.service import REJOIN_GRACE_S, Durable
from homeport.sandboxes.launcher import SandboxLauncher
from homeport.sandboxes.model import (
    EXIT_KILLED,
    PAGE_MAX,
    Port,
    SandboxRecord,
    SandboxResult,
    SandboxSpec,
    SecretRef,
    Tunnel,
    check_name,
    check_spec,
    check_tags,
    exit_image_id,
    has_tags,
    lost,
    new_ids,
    result_of,
    unstarted,
)
from homeport.sandboxes.ports import Snapshots, Source
from homeport.sandboxes.store import SandboxStore
from homeport.tasks.model import TaskRecord
from homeport.tasks.service import TaskService

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

RETENTION_S: Final = 30 * 86400.0
"""How long ended sandboxes can be looked up."""
ENDED_MAX: Final = 2_000
"""Ended sandboxes kept in memory; the others are read from the database."""
STOP_APP_S: Final = 18.0
"""How long the end of an app waits for its sandboxes to be gone."""
_NODE_S: Final = 300.0
"""How long input waits for a sandbox that waits for room."""
_TICK_S: Final = 1e-6

Places = Callable[[str], tuple[str, str, str]]
"""For a tunnel's name: an address of its own, its certificate and key (PEM)."""
_Line = tuple[str, str]
_ROOM: Final[_Line] = ("room", "")
_EMPTY_MACHINE: Final[_Line] = ("empty machine", "")
NO_PLACE: Final = ("", "", "")
MemoryRecorder = Callable[[SandboxSnapshot, SandboxRecord], Awaitable[None]]


class Spot(Protocol):
    """A place for a sandbox."""

    @property
    def node_id(self) -> str: ...

    @property
    def amount(self) -> Resources: ...

    @property
    def gpus(self) -> Sequence[str]:
        """UUIDs of the GPUs of the node that it has."""
        ...


class Room(Protocol):
    """What nodes have room for (the scheduler)."""

    def check(self, spec: SandboxSpec) -> None:
        """Raise ``InvalidError`` for what no node can give."""
        ...

    def reserve(self, task_id: str, spec: SandboxSpec) -> Spot | None:
        """A node with room for it, and what of that it takes; ``None`` if none has any."""
        ...

    def count(self, task_id: str, spec: SandboxSpec, node_id: str, gpus: Sequence[str]) -> Spot:
        """It runs there already, with these GPUs: count it."""
        ...

    def free(self, task_id: str) -> None:
        """It is gone."""
        ...

    def memory_limit_mb(self, spec: SandboxSpec, node_id: str) -> int: ...

    def is_oversized(self, spec: SandboxSpec) -> bool:
        """Whether it asks for more than any node has: it gets one for itself when that is empty."""
        ...

    def wanted(self, spec: SandboxSpec) -> None:
        """Such a sandbox waits for room."""
        ...

    def work_finished(self, app_id: str) -> None:
        """The app's last sandbox is gone."""
        ...


class Nodes(Protocol):
    """The links to nodes."""

    def send(self, node_id: str, message: Message) -> bool: ...

    async def ask(self, node_id: str, make: Callable[[int], Message]) -> Answer:
        """Raises ``HomeportError``: the node's own, or ``UnavailableError`` without it."""
        ...


class Secrets(Protocol):
    def seal(self, owner_id: str, values: Mapping[str, str]) -> bytes: ...


@dataclass(slots=True, eq=False)
class _Live:
    """A sandbox that has not ended."""

    record: SandboxRecord
    placed: asyncio.Event = field(default_factory=asyncio.Event)
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    """Its node has been told of it: it can be asked about it."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    spot: Spot | None = None


class SandboxService:
    """All sandboxes; those that live in memory, written through."""

    def __init__(
        self,
        store: SandboxStore,
        nodes: Nodes,
        tasks: TaskService,
        logs: LogService,
        secrets: Secrets,
        launcher: SandboxLauncher,
        snapshots: Snapshots,
        clock: Clock,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._tasks = tasks
        self._logs = logs
        self._secrets = secrets
        self._launcher = launcher
        self._snapshots = snapshots
        self._clock = clock
        self._apps: AppService
        self._room: Room
        self._live: dict[str, _Live] = {}
        self._by_task: dict[str, _Live] = {}
        self._names: dict[tuple[str, str], _Live] = {}
        self._waiting: dict[str, _Live] = {}
        self._ended: OrderedDict[str, SandboxRecord] = OrderedDict()
        self._recording: dict[str, asyncio.Future[None]] = {}
        """Exit snapshots that are being recorded, by task."""
        self._launches: set[asyncio.Task[None]] = set()
        self._record_memory: MemoryRecorder | None = None
        self._rejoin: asyncio.TimerHandle | None = None
        self._connected: set[str] = set()
        self._last_created_at = 0.0

    def use(self, apps: AppService, room: Room) -> None:
        """Complete the wiring: these need the scheduler, which needs this."""
        self._apps = apps
        self._room = room

    def use_memory(self, record: MemoryRecorder) -> None:
        """Who takes up what nodes say of memory snapshots; it needs this service itself."""
        self._record_memory = record

    async def start(self) -> None:
        """Take up what a former server process left alive."""
        self._last_created_at = await self._store.last_created_at()
        for record in reversed(await self._store.load_alive()):
            live = self._add(record)
            if not record.node_id:
                self._waiting[record.sandbox_id] = live
        if self._live:
            loop = asyncio.get_running_loop()
            self._rejoin = loop.call_later(REJOIN_GRACE_S, self._give_up_absent)

    async def stop(self) -> None:
        """Stop deciding; sandboxes are left to their nodes."""
        if self._rejoin is not None:
            self._rejoin.cancel()
        for launch in list(self._launches):
            launch.cancel()

    def _add(self, record: SandboxRecord) -> _Live:
        live = _Live(record)
        self._live[record.sandbox_id] = self._by_task[record.task_id] = live
        if record.node_id:
            live.placed.set()
        if record.ready_at:
            live.ready.set()
        if record.is_named:
            self._names[(record.app_id, record.name)] = live
        return live

    # ── creation ────────────────────────────────────────────────────────────────────────────

    async def create(
        self,
        app_id: str,
        spec: SandboxSpec,
        *,
        name: str,
        tags: dict[str, str],
        sources: Sequence[Source],
        bucket_credentials: Mapping[str, Mapping[str, str]],
        is_v2: bool,
        seed: str,
        is_repeat: bool,
    ) -> SandboxRecord:
        """A new sandbox, on its way to a node (or waiting for room); the same ``seed`` once.

        Raises ``InvalidError``, ``NotFoundError`` or ``AlreadyExistsError``.
        """
        sandbox_id, task_id = new_ids(seed, is_v2=is_v2)
        known = await self._known(sandbox_id) if is_repeat else None
        if known is not None:
            return known
        check_spec(spec)
        check_tags(tags)
        if name:
            check_name(name)
        self._apps.require_live(app_id)
        self._room.check(spec)
        spec = msgspec.structs.replace(
            spec,
            secrets=self.sealed(sandbox_id, sources),
            bucket_secrets={
                path: ref
                for path, values in bucket_credentials.items()
                for ref in self.sealed(sandbox_id, [values])
            },
        )
        await self._launcher.check(sandbox_id, spec)
        self._require_free(app_id, name)
        record = SandboxRecord(
            sandbox_id=sandbox_id,
            task_id=task_id,
            app_id=app_id,
            is_v2=is_v2,
            name=name,
            tags=tags,
            spec=spec,
            created_at=self._creation_time(),
            log_position=self._logs.position,
        )
        live = self._add(record)
        if self._is_behind(spec) or not self._place(live):
            self._waiting[sandbox_id] = live
            self._room.wanted(spec)
        try:
            await self._store.save(live.record)
        except Exception:
            self.terminate_task(task_id)
            raise
        return live.record

    async def _known(self, sandbox_id: str) -> SandboxRecord | None:
        live = self._live.get(sandbox_id)
        return live.record if live else await self.find(sandbox_id)

    def sealed(self, sandbox_id: str, sources: Sequence[Source]) -> list[SecretRef]:
        """Raises ``InvalidError`` for an id that is empty: in a ``SecretRef`` it would mean sealed."""
        if "" in sources:
            raise InvalidError(
                "One of the secrets has no id: pass secrets of the client as they are"
            )
        return [
            SecretRef(source)
            if isinstance(source, str)
            else SecretRef(sealed=self._secrets.seal(sandbox_id, source))
            for source in sources
        ]

    def _require_free(self, app_id: str, name: str) -> None:
        if name and (app_id, name) in self._names:
            raise AlreadyExistsError(
                f"A sandbox named {name!r} is running in this app already; end it first, or find "
                "it with Sandbox.from_name"
            )

    def _creation_time(self) -> float:
        """Clients page by it, so no two sandboxes may share one."""
        self._last_created_at = max(self._clock.now(), self._last_created_at + _TICK_S)
        return self._last_created_at

    # ── placing and starting ────────────────────────────────────────────────────────────────

    def _place(self, live: _Live) -> bool:
        """Send it to a node that has room; ``False`` if there is none."""
        record = live.record
        spot = self._room.reserve(record.task_id, record.spec)
        if spot is None:
            return False
        node_id, live.spot = spot.node_id, spot
        live.record = msgspec.structs.replace(record, node_id=node_id)
        self._tasks.created(
            TaskRecord(
                task_id=record.task_id,
                function_id="",
                app_id=record.app_id,
                node_id=node_id,
                enqueued_at=record.created_at,
            )
        )
        live.placed.set()
        self._launch(live)
        return True

    def serve_waiting(self) -> None:
        """There may be room: place those that wait, in their order.

        Each is in the way of those alone that wait for the same (``_line``).
        """
        full: set[_Line] = set()
        for sandbox_id, live in list(self._waiting.items()):
            line = self._line(live.record.spec)
            if line in full:
                continue
            if not self._place(live):
                if line == _ROOM:
                    return
                full.add(line)
                continue
            del self._waiting[sandbox_id]
            self._store.save(live.record)

    def _line(self, spec: SandboxSpec) -> _Line:
        """In which line it waits: that for room, of which all need some, or one beside it.

        There is one for each type of GPU, and one for those that ask for more than any machine
        has: they need one that is empty, which may take as long as anything runs.
        """
        if spec.gpus:
            return ("gpu", spec.gpu_type)
        return _EMPTY_MACHINE if self._room.is_oversized(spec) else _ROOM

    def waiting_for_gpus(self) -> list[SandboxSpec]:
        """Those that wait and are to have a GPU."""
        specs = (live.record.spec for live in self._waiting.values())
        return [spec for spec in specs if spec.gpus]

    def _is_behind(self, spec: SandboxSpec) -> bool:
        """Whether others waited before it for what it needs."""
        before = (_ROOM, self._line(spec))
        return any(self._line(live.record.spec) in before for live in self._waiting.values())

    async def sent_to_node(self, task_id: str) -> None:
        """Returns when a node has been told about the sandbox of that task, if it is alive."""
        live = self._by_task.get(task_id)
        if live is not None:
            await _within(_NODE_S, live.sent)

    def _launch(self, live: _Live) -> None:
        live.sent.clear()
        launch = asyncio.create_task(self._start(live))
        self._launches.add(launch)
        launch.add_done_callback(self._launches.discard)

    async def _start(self, live: _Live) -> None:
        record = live.record
        assert live.spot is not None
        memory_mb = self._room.memory_limit_mb(record.spec, record.node_id)
        try:
            message = await self._launcher.prepare(record, memory_mb, live.spot.amount.milli_cpu)
            message.gpus = list(live.spot.gpus)
        except asyncio.CancelledError:
            raise
        except HomeportError as error:
            self._finish(live, unstarted(error.message))
            return
        except Exception as error:
            log.exception("a sandbox could not be prepared", sandbox_id=record.sandbox_id)
            self._finish(live, unstarted(f"the server failed to prepare it: {error!r}"))
            return
        if not live.over.is_set():
            # Without a connection: the node's next Hello does not name it, and it is sent again.
            self._nodes.send(record.node_id, message)
            live.sent.set()
            if live.record.terminated_at:
                self._kill(live)

    # ── look-ups ────────────────────────────────────────────────────────────────────────────

    async def find(self, sandbox_id: str) -> SandboxRecord | None:
        """A sandbox by its own or its task's id, alive or ended."""
        live = self._live.get(sandbox_id) or self._by_task.get(sandbox_id)
        if live is not None:
            return live.record
        return self._ended.get(sandbox_id) or await self._store.find(sandbox_id)

    async def get(self, sandbox_id: str) -> SandboxRecord:
        """As ``find``; raises ``NotFoundError``."""
        record = await self.find(sandbox_id)
        if record is None:
            raise NotFoundError(f"Sandbox {sandbox_id!r} not found")
        return record

    async def named(self, app_id: str, name: str, *, ended_too: bool) -> SandboxRecord:
        """The running sandbox of that name. Raises ``NotFoundError``."""
        live = self._names.get((app_id, name))
        if live is not None:
            return live.record
        found = await self._store.named(app_id, name) if ended_too else None
        if found is None:
            raise NotFoundError(f"There is no running sandbox named {name!r} in this app")
        return await self.get(found.sandbox_id)

    async def list(
        self,
        app_ids: Sequence[str],
        *,
        tags: Mapping[str, str],
        before: float,
        ended_too: bool,
    ) -> list[SandboxRecord]:
        """A page of the sandboxes of these apps, newest first, created before that time (0: now)."""
        before = before or float("inf")
        apps = frozenset(app_ids)
        found = [
            live.record
            for live in self._live.values()
            if live.record.app_id in apps
            and live.record.created_at < before
            and has_tags(live.record, tags)
        ]
        if ended_too:
            found += await self._ended_page(app_ids, tags, before)
        found.sort(key=lambda record: record.created_at, reverse=True)
        return found[:PAGE_MAX]

    async def _ended_page(
        self, app_ids: Sequence[str], tags: Mapping[str, str], before: float
    ) -> list[SandboxRecord]:
        found: list[SandboxRecord] = []
        while len(found) < PAGE_MAX:
            rows = await self._store.ended(app_ids, created_before=before, limit=PAGE_MAX)
            found += [row for row in rows if row.sandbox_id not in self._live]
            found = [row for row in found if has_tags(row, tags)]
            if len(rows) < PAGE_MAX:
                break
            before = rows[-1].created_at
        return found

    def has_live(self, app_id: str) -> bool:
        """Whether the app has sandboxes that run or wait."""
        return any(live.record.app_id == app_id for live in self._live.values())

    # ── waiting ─────────────────────────────────────────────────────────────────────────────

    async def wait(self, sandbox_id: str, timeout_s: float) -> SandboxRecord:
        """The sandbox when it has ended, or as it is after ``timeout_s``."""
        live = self._live.get(sandbox_id)
        if live is None:
            return await self.get(sandbox_id)
        if timeout_s > 0:
            await _within(timeout_s, live.over)
        return live.record

    async def placed(self, sandbox_id: str, timeout_s: float) -> SandboxRecord:
        """The sandbox when it has been given to a node or has ended, or after ``timeout_s``."""
        live = self._live.get(sandbox_id)
        if live is None:
            return await self.get(sandbox_id)
        if timeout_s > 0:
            await _within(timeout_s, live.placed)
        return live.record

    async def until_ready(self, sandbox_id: str, timeout_s: float) -> float:
        """When its probe first succeeded (Unix seconds), as soon as it did.

        Raises ``ConflictError`` without a probe or when it ended before, ``DeadlineError``.
        """
        live = self._live.get(sandbox_id)
        record = live.record if live is not None else await self.get(sandbox_id)
        if record.spec.probe is None:
            raise ConflictError(
                "The sandbox has no readiness probe: give it one with readiness_probe="
            )
        if live is not None:
            await _within(timeout_s, live.ready)
            record = live.record
        if record.ready_at:
            return record.ready_at
        if record.is_over:
            raise ConflictError("The sandbox ended before it was ready")
        raise DeadlineError(f"The sandbox was not ready within {timeout_s:g} s")

    # ── changes ─────────────────────────────────────────────────────────────────────────────

    async def set_tags(self, sandbox_id: str, tags: dict[str, str]) -> None:
        """Replace all tags; durable when it returns. Raises ``InvalidError``."""
        check_tags(tags)
        await self._change(await self.get(sandbox_id), tags=tags)

    async def set_name(self, sandbox_id: str, name: str) -> None:
        """Name a running sandbox that has no name yet; durable when it returns."""
        check_name(name)
        record = await self.get(sandbox_id)
        live = self._live.get(sandbox_id)
        if record.name == name and live is not None:
            return
        if record.name:
            raise ConflictError(f"The sandbox has the name {record.name!r} already")
        if live is None or record.terminated_at:
            raise ConflictError("The sandbox has ended and can get no name")
        self._require_free(record.app_id, name)
        self._names[(record.app_id, name)] = live
        await self._change(record, name=name)

    async def _change(self, record: SandboxRecord, **changes: object) -> SandboxRecord:
        record = msgspec.structs.replace(record, **changes)
        live = self._live.get(record.sandbox_id)
        if live is not None:
            live.record = record
        elif record.sandbox_id in self._ended:
            self._ended[record.sandbox_id] = record
        await self._store.save(record)
        return record

    async def tunnels(
        self, sandbox_id: str, timeout_s: float, place: Places | None = None
    ) -> list[Tunnel]:
        """The open ports and where they are reached (RPC ``SandboxGetTunnels``).

        ``place`` gives tunnels with TLS addresses of their own, by a name for each.

        Raises ``ConflictError`` when it has ended, ``DeadlineError`` when it got no node in time,
        ``UnavailableError`` while its node is away.
        """
        if not (await self.get(sandbox_id)).spec.ports:
            return []
        record = await self._to_open(sandbox_id, timeout_s)
        found: list[Tunnel] = []
        for port in record.spec.ports:
            own = place(f"{record.task_id} {port.number}") if place is not None else NO_PLACE
            encrypted = await self._open_tunnel(record, port, unencrypted=False, place=own)
            plain = 0
            if port.unencrypted:
                plain = await self._open_tunnel(record, port, unencrypted=True, place=NO_PLACE)
            host = own[0] if encrypted == HTTPS_PORT else ""
            found.append(Tunnel(port.number, encrypted, plain, host))
        return found

    async def door(
        self, sandbox_id: str, timeout_s: float, place: Places | None = None
    ) -> tuple[SandboxRecord, Tunnel]:
        """Where the sandbox is reached with connect tokens. Raises as ``tunnels`` does."""
        record = await self._to_open(sandbox_id, timeout_s)
        own = place(f"{record.task_id} door") if place is not None else NO_PLACE
        number = await self._open_tunnel(
            record, Port(0), unencrypted=False, place=own, is_door=True
        )
        return record, Tunnel(0, number, host=own[0] if number == HTTPS_PORT else "")

    async def _to_open(self, sandbox_id: str, timeout_s: float) -> SandboxRecord:
        """As soon as its node can be asked for tunnels."""
        live = self._live.get(sandbox_id)
        record = live.record if live is not None else await self.get(sandbox_id)
        if live is not None:
            await _within(timeout_s, live.sent)
            record = live.record
        if record.is_over:
            raise ConflictError("The sandbox has ended: its tunnels are closed")
        if live is None or not live.sent.is_set():
            raise DeadlineError(f"The sandbox did not start within {timeout_s:g} s")
        return record

    async def _open_tunnel(
        self,
        record: SandboxRecord,
        port: Port,
        *,
        unencrypted: bool,
        place: tuple[str, str, str],
        is_door: bool = False,
    ) -> int:
        host, certificate, key = place
        message = partial(
            OpenTunnel,
            task_id=record.task_id,
            port=port.number,
            unencrypted=unencrypted,
            h2=port.h2,
            host=host,
            certificate=certificate,
            key=key,
            sources=record.spec.allowed_sources,
            is_door=is_door,
        )
        return (await self._nodes.ask(record.node_id, message)).number

    async def write_stdin(self, sandbox_id: str, index: int, data: bytes, *, eof: bool) -> None:
        """Write to its standard input (RPC ``SandboxStdinWrite``).

        Raises ``ConflictError`` after its end, ``UnavailableError`` while its node is away.
        """
        record = await self.on_its_node(sandbox_id, "nobody reads its input any more")
        task_id = record.task_id
        await self._nodes.ask(
            record.node_id, lambda ask_id: WriteStdin(ask_id, task_id, index, data, eof)
        )

    async def reload_volumes(self, task_id: str) -> None:
        """Show a running sandbox the newest state of its volumes. Raises ``HomeportError``."""
        record = await self.on_its_node(task_id, "it sees no volumes any more")
        await self._nodes.ask(record.node_id, lambda ask_id: ReloadVolumes(ask_id, record.task_id))

    async def snapshot(self, sandbox_id: str, image_id: str, ttl_s: float) -> None:
        """Make the files of a running sandbox the image ``image_id``.

        Raises ``ConflictError`` when it has ended, ``UnavailableError`` if the node cannot.
        """
        record = await self.on_its_node(sandbox_id, "a snapshot is taken of a running one")
        task_id = record.task_id
        await self._nodes.ask(
            record.node_id, lambda ask_id: TakeSnapshot(ask_id, task_id, image_id, ttl_s)
        )

    async def exit_snapshot(self, sandbox_id: str, timeout_s: float) -> str | None:
        """The image of its files at its end; ``None`` if it has not ended within ``timeout_s``.

        Raises ``InvalidError`` if none was asked for, ``NotFoundError`` if there will be none.
        """
        record = await self.wait(sandbox_id, 0.0)
        if not record.spec.exit_snapshot:
            raise InvalidError(
                "The sandbox was created without an exit snapshot: ask for one with "
                'experimental_options={"enable_exit_snapshot": True}'
            )
        record = await self.wait(sandbox_id, timeout_s)
        if not record.is_over:
            return None
        recording = self._recording.get(record.task_id)
        if recording is not None:
            await asyncio.wait([recording], timeout=timeout_s)
            if not recording.done():
                return None
            record = await self.get(sandbox_id)
        if not record.exit_image_id:
            why = record.result.exception if record.result is not None else ""
            raise NotFoundError(f"The sandbox left no snapshot of its files. {why}".strip())
        return record.exit_image_id

    def limits(self, record: SandboxRecord) -> Resources:
        """What a running sandbox may use on its node."""
        live = self._live.get(record.sandbox_id)
        reserved = live.spot.amount if live is not None and live.spot is not None else None
        memory_mb = self._room.memory_limit_mb(record.spec, record.node_id)
        return Resources(reserved.milli_cpu if reserved else record.spec.milli_cpu, memory_mb, 0)

    async def counts(self, app_id: str, since: float, until: float) -> tuple[int, int]:
        """How many of an app's ended between these Unix times, and how many there were at the end."""
        return await self._store.counts(app_id, since, until)

    async def samples(self, record: SandboxRecord) -> list[UsageSample]:
        """What was measured of it. Raises ``UnavailableError`` while its node is away."""
        if record.is_over:
            return await self._store.usage(record.sandbox_id)
        if not record.started_at:
            return []
        task_id = record.task_id
        answer = await self._nodes.ask(record.node_id, lambda ask_id: AskUsage(ask_id, task_id))
        return answer.usage

    async def on_its_node(self, sandbox_id: str, when_over: str) -> SandboxRecord:
        """A sandbox (by its own or its task's id) that its node has been told of.

        Raises ``NotFoundError``, ``ConflictError`` if it has ended, ``UnavailableError`` if it
        still waits for room.
        """
        live = self._live.get(sandbox_id) or self._by_task.get(sandbox_id)
        if live is not None:
            await _within(_NODE_S, live.sent)
        record = live.record if live is not None else await self.get(sandbox_id)
        if record.is_over:
            raise ConflictError(f"The sandbox has ended: {when_over}")
        if live is None or not live.sent.is_set():
            raise UnavailableError("The sandbox waits for room on a node; try again")
        return record

    # ── the end ─────────────────────────────────────────────────────────────────────────────

    async def terminate(self, sandbox_id: str) -> SandboxResult | None:
        """End it: its result if it was over already. Its end is reported when it is gone."""
        live = self._live.get(sandbox_id)
        if live is None:
            return (await self.get(sandbox_id)).result
        self._terminate(live)
        await self._store.save(live.record)
        return None

    def terminate_task(self, task_id: str) -> bool:
        """End the sandbox of that task; ``False`` if it is no live sandbox's."""
        live = self._by_task.get(task_id)
        if live is None:
            return False
        self._terminate(live)
        self._store.save(live.record)
        return True

    async def stop_app(self, app_id: str) -> None:
        """End all sandboxes of an app; returns when they are gone, or after a while."""
        mine = [live for live in self._live.values() if live.record.app_id == app_id]
        for live in mine:
            self.terminate_task(live.record.task_id)
        waits = [asyncio.create_task(live.over.wait()) for live in mine]
        if waits:
            _, late = await asyncio.wait(waits, timeout=STOP_APP_S)
            for wait in late:
                wait.cancel()

    def _terminate(self, live: _Live) -> None:
        record = live.record
        if not record.terminated_at:
            live.record = msgspec.structs.replace(record, terminated_at=self._clock.now())
            self._release_name(live)
        if not record.node_id:
            self._finish(live, SandboxResult(STATUS_TERMINATED, EXIT_KILLED))
        else:
            self._kill(live)

    def _kill(self, live: _Live) -> None:
        # Not delivered: the node's next Hello has it said again.
        self._nodes.send(live.record.node_id, StopTask(live.record.task_id, False, 0.0))

    def _release_name(self, live: _Live) -> None:
        key = (live.record.app_id, live.record.name)
        if self._names.get(key) is live:
            del self._names[key]

    def _finish(self, live: _Live, result: SandboxResult) -> Durable:
        record = live.record
        if record.is_over:
            return []
        record = msgspec.structs.replace(record, result=result, finished_at=self._clock.now())
        live.record = record
        self._release_name(live)
        del self._live[record.sandbox_id], self._by_task[record.task_id]
        self._waiting.pop(record.sandbox_id, None)
        self._ended[record.sandbox_id] = record
        if len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)
        saved = self._store.save(record)
        self._tasks.finished(record.task_id)
        if result.status in (STATUS_INIT_FAILURE, STATUS_INTERNAL_FAILURE, STATUS_OUT_OF_MEMORY):
            text = f"{record.sandbox_id}: {result.exception}\n"
            self._logs.system(record.app_id, text, task_id=record.task_id)
        self._logs.task_state(record.app_id, record.task_id, TASK_COMPLETED)
        for event in (live.over, live.placed, live.sent, live.ready):
            event.set()
        self._room.free(record.task_id)
        if not self.has_live(record.app_id):
            self._room.work_finished(record.app_id)
        return [saved]

    # ── what nodes say ──────────────────────────────────────────────────────────────────────

    def said(self, message: Message) -> Durable | None:
        """Act on a node's message; ``None`` if it is not about a live sandbox."""
        if isinstance(message, SandboxSnapshot):
            return [self._record_snapshot(message)]
        live = self._by_task.get(getattr(message, "task_id", ""))
        if live is None or isinstance(message, Logs):
            return None
        record = live.record
        if isinstance(message, SandboxStarted) and not record.started_at:
            live.record = msgspec.structs.replace(record, started_at=message.time)
            self._tasks.started(record.task_id, message.time)
            self._logs.task_state(record.app_id, record.task_id, TASK_ACTIVE)
            return [self._store.save(live.record)]
        if isinstance(message, SandboxReady) and not record.ready_at:
            live.record = msgspec.structs.replace(record, ready_at=message.time)
            live.ready.set()
            return [self._store.save(live.record)]
        if isinstance(message, TaskExited):
            terminated = bool(record.terminated_at)
            result = result_of(message, terminated=terminated, spec=record.spec)
            durable = self._finish(live, result)
            if message.usage:
                durable = [*durable, self._store.save_usage(record.sandbox_id, message.usage)]
            return durable
        return []

    def _record_snapshot(self, message: SandboxSnapshot) -> asyncio.Future[None]:
        recording = asyncio.ensure_future(self._snapshotted(message))
        task_id = message.task_id
        if message.image_id == exit_image_id(task_id):
            self._recording[task_id] = recording
            recording.add_done_callback(lambda _: self._recording.pop(task_id, None))
        return recording

    async def _snapshotted(self, message: SandboxSnapshot) -> None:
        record = await self.find(message.task_id)
        if record is None:
            log.error("a snapshot of an unknown sandbox", task_id=message.task_id)
            return
        if message.memory:
            assert self._record_memory is not None
            await self._record_memory(message, record)
            return
        await self._snapshots.add(
            message.image_id,
            made_on=record.spec.image_id,
            base_id=message.base_id if message.own_base else record.spec.image_id,
            layers=message.layers,
            node_id=record.node_id,
            sandbox_id=record.sandbox_id,
            app_id=record.app_id,
            ttl_s=message.ttl_s,
        )
        if message.image_id == exit_image_id(record.task_id):
            await self._change(await self.get(record.sandbox_id), exit_image_id=message.image_id)

    def joined(self, node_id: str, hello: Hello) -> set[str]:
        """A node came (back): agree on its sandboxes; those of its tasks that are live ones."""
        running = {task.task_id: task.gpus for task in hello.running}
        self._connected.add(node_id)
        mine = [live for live in self._live.values() if live.record.node_id == node_id]
        for live in mine:
            record = live.record
            if live.spot is None and (record.task_id in running or not record.spec.gpus):
                gpus = running.get(record.task_id, [])
                live.spot = self._room.count(record.task_id, record.spec, node_id, gpus)
            if record.task_id in running:
                live.sent.set()
                if record.terminated_at:
                    self._kill(live)
            elif record.terminated_at:
                self._finish(live, SandboxResult(STATUS_TERMINATED, EXIT_KILLED))
            elif record.started_at:
                self._finish(live, lost("its node was restarted"))
            elif live.spot is None:  # placed, but nobody knows any more on which GPU
                live.record = msgspec.structs.replace(record, node_id="")
                live.placed.clear()
                self._waiting[record.sandbox_id] = live
            else:
                self._launch(live)
        return running.keys() & {live.record.task_id for live in mine}

    def node_lost(self, node_id: str) -> None:
        """The node did not come back in time."""
        self._connected.discard(node_id)
        for live in list(self._live.values()):
            if live.record.node_id == node_id:
                self._lose(live)

    def _give_up_absent(self) -> None:
        """Nodes that did not come back after a restart of the server."""
        for live in list(self._live.values()):
            if live.record.node_id and live.record.node_id not in self._connected:
                self._lose(live)

    def _lose(self, live: _Live) -> None:
        if live.record.terminated_at:
            self._finish(live, SandboxResult(STATUS_TERMINATED, EXIT_KILLED))
        else:
            self._finish(live, lost("its node went away"))

    # ── upkeep ──────────────────────────────────────────────────────────────────────────────

    async def prune(self) -> int:
        """Forget sandboxes that ended longer ago than the retention."""
        return await self._store.prune(self._clock.now() - RETENTION_S)

    def images_in_use(self) -> set[str]:
        """The images that live sandboxes run on."""
        specs = [live.record.spec for live in self._live.values()]
        memories = {spec.memory_image_id for spec in specs if spec.memory_image_id}
        return memories | {spec.image_id for spec in specs}


async def _within(timeout_s: float, event: asyncio.Event) -> None:
    """Wait for ``event``, but not longer."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
