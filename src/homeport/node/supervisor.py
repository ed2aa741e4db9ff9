"""All containers of a node: what the server says reaches the right one, and what is held is known."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import structlog

from homeport import __version__
from homeport.kernel.clock import Clock
from homeport.kernel.errors import (
    Code,
    ConflictError,
    HomeportError,
    NotFoundError,
    UnavailableError,
)
from homeport.kernel.gpus import Gpu
from homeport.kernel.resources import Resources
from homeport.kernel.signing import Signer
from homeport.link.messages import (
    PROTOCOL,
    Answer,
    AskUsage,
    BuildImage,
    CancelBuild,
    CancelInputs,
    DeliverInputs,
    DropLayers,
    Hello,
    InputsReturned,
    OpenTunnel,
    PruneCaches,
    RecallInputs,
    ReloadVolumes,
    RouterCancel,
    RouterCertificate,
    RouterRequest,
    RunningTask,
    ServerMessage,
    StartSandbox,
    StartSidecar,
    StartTask,
    StopTask,
    TakeMemory,
    TakeSnapshot,
    UsageSample,
    Welcome,
    WriteStdin,
)
from homeport.node.door import Door, verifier
from homeport.node.isolation import Isolation
from homeport.node.link import NodeLink
from homeport.node.prepare import Preparer
from homeport.node.runtime.port import Container
from homeport.node.sandbox import Exec, Sandbox
from homeport.node.sandbox_snapshots import Snapshots
from homeport.node.sidecars import Sidecars, check_memory
from homeport.node.task import Relay, Task
from homeport.node.templates.pool import Templates
from homeport.node.tunnels import Contexts, Place, Tunnel, TunnelPort, Tunnels
from homeport.node.work import Key

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LOST_GRACE_S = 10.0
"""How long a task the server gave up may take to end."""


OUTPUT_S = 3600.0
"""How long the output of an ended sandbox can be read from its node."""
OUTPUT_COUNT_MAX = 1_000
OUTPUT_BYTES_MAX = 1024**3
"""Bounds of all such output; the oldest goes first."""


class Builds(Protocol):
    """Image builds of this node."""

    def start(self, message: BuildImage) -> None: ...

    def cancel(self, build_id: str) -> None: ...

    async def stop(self) -> None: ...


class Room(Protocol):
    """The image layers of this node, as ``LayerRoom`` keeps them."""

    def keys(self) -> list[str]: ...

    async def drop(self, keys: Sequence[str], *, others: bool = False) -> None: ...


class Kept(Protocol):
    """What builds of this node keep, as ``Caches`` does."""

    async def prune(self) -> int: ...


class Hosted(Protocol):
    """What this node runs for the server: a function's container or a sandbox."""

    def usage(self) -> list[UsageSample]:
        """What its container has used so far."""
        ...

    @property
    def task_id(self) -> str: ...

    @property
    def is_over(self) -> bool: ...

    @property
    def container(self) -> Container:
        """Raises ``NotFoundError`` before it runs and when it has ended."""
        ...

    @property
    def env(self) -> dict[str, str]:
        """The environment of its command."""
        ...

    @property
    def workdir(self) -> str: ...

    async def started(self) -> Container:
        """The container, as soon as it runs. Raises ``NotFoundError`` if it has ended."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """Somebody uses it: it is not idle for the time of the block."""
        ...

    def running(self) -> RunningTask: ...

    def flush(self) -> None: ...

    def introduce(self) -> None: ...

    def stop(self, *, graceful: bool, grace_s: float, reason: str = "") -> None: ...

    async def run(self) -> None: ...


class Router(Protocol):
    """The command router of this node."""

    @property
    def port(self) -> int: ...

    @property
    def host(self) -> str: ...

    def welcomed(self, welcome: Welcome) -> None: ...

    def certify(self, certificate: str, key: str) -> None: ...

    def handle(self, message: RouterRequest | RouterCancel) -> None: ...


class Supervisor:
    """The node's tasks; the ``LinkHandler`` of its link."""

    def __init__(
        self,
        *,
        node_id: str,
        capacity: Resources,
        isolation: Isolation,
        gpus: Sequence[Gpu],
        link: NodeLink,
        preparer: Preparer,
        relay: Relay | None,
        builds: Builds | None,
        clock: Clock,
        room: Room | None = None,
        caches: Kept | None = None,
        router: Router | None = None,
        snapshots: Snapshots | None = None,
        sidecars: Sidecars | None = None,
        tunnels: Tunnels | None = None,
        templates: Templates | None = None,
    ) -> None:
        self._node_id = node_id
        self._capacity = capacity
        self._isolation = isolation
        self._gpus = gpus
        self._link = link
        self._preparer = preparer
        self._relay = relay
        self._builds = builds
        self._clock = clock
        self._room = room
        self._caches = caches
        self._router = router
        self.snapshots = snapshots
        """Takes those of sandboxes."""
        self._tunnels = tunnels
        self._connect_signer: Signer | None = None
        self._templates = templates
        self.sidecars = sidecars or Sidecars(link, preparer, clock)
        """Further containers of sandboxes."""
        self._drops: set[asyncio.Task[None]] = set()
        self._tasks: dict[str, Hosted] = {}
        self._ended = EndedSandboxes()
        self._answers: set[asyncio.Task[None]] = set()
        self.execute: Exec | None = None
        """Runs a sandbox's probe commands (set while wiring)."""
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._said: dict[str, set[Key]] = {}
        self._stopping = False

    # ── LinkHandler ───────────────────────────────────────────────────────────────────────────

    def hello(self) -> Hello:
        """What this node is and has.

        A task whose end is not acknowledged is still named, with what its reports are about:
        they follow on the same connection, and the server need not take it for lost.
        """
        for task in self._tasks.values():
            task.flush()
        unacknowledged = self._link.unacknowledged()
        running: list[RunningTask] = []
        for task in self._tasks.values():
            entry = task.running()
            entry.inputs = _unique(entry.inputs + unacknowledged.pop(task.task_id, []))
            running.append(entry)
        for task_id, keys in unacknowledged.items():
            running.append(RunningTask(task_id, True, _unique(keys)))
        self._said = {entry.task_id: set(entry.inputs) for entry in running}
        return Hello(
            protocol=PROTOCOL,
            node_id=self._node_id,
            version=__version__,
            capacity=self._capacity,
            runtimes=self._isolation.names,
            gpus=list(self._gpus),
            running=running,
            layers=self._room.keys() if self._room is not None else [],
            router_port=self._router.port if self._router is not None else 0,
            router_host=self._router.host if self._router is not None else "",
        )

    def welcomed(self, welcome: Welcome) -> None:
        """Drop what the server no longer wants of what ``Hello`` named."""
        self._isolation.begin()
        if self._router is not None:
            self._router.welcomed(welcome)
        self._certify(welcome.router_certificate, welcome.router_certificate_key)
        key = welcome.router_key
        self._connect_signer = Signer(key, self._clock) if key else None
        wanted: dict[str, set[Key]] = defaultdict(set)
        for task_id, input_id, retry_count in welcome.known_inputs:
            wanted[task_id].add((input_id, retry_count))
        for task_id, said in self._said.items():
            task = self._tasks.get(task_id)
            if task is None:
                continue
            if task_id in welcome.lost_tasks:
                if isinstance(task, Task):
                    task.forget(list(said))
                task.stop(
                    graceful=False, grace_s=LOST_GRACE_S, reason="the server gave this task up"
                )
            else:
                if isinstance(task, Task):
                    task.forget(list(said - wanted[task_id]))
                task.introduce()
        self._said = {}

    def handle(self, message: ServerMessage) -> None:
        """Carry out a message; a defect in one of them must not end the link."""
        try:
            self._handle(message)
        except Exception:
            log.exception("a message was not carried out", message=type(message).__name__)

    def _handle(self, message: ServerMessage) -> None:
        match message:
            case StartTask():
                self._start_task(message)
            case StartSandbox():
                self._start_sandbox(message)
            case StartSidecar():
                self._answer(message.ask_id, self._start_sidecar(message))
            case AskUsage():
                self._tell_usage(message)
            case WriteStdin():
                self._answer(message.ask_id, self._write_stdin(message))
            case ReloadVolumes():
                self._answer(message.ask_id, self._reload_volumes(message))
            case TakeSnapshot():
                self._answer(message.ask_id, self._take_snapshot(message))
            case TakeMemory():
                self._answer(message.ask_id, self._take_memory(message))
            case OpenTunnel():
                self._answer(message.ask_id, self._open_tunnel(message))
            case DeliverInputs():
                self._deliver(message)
            case CancelInputs():
                self._cancel(message)
            case RecallInputs():
                self._recall(message)
            case StopTask():
                self._stop_task(message)
            case BuildImage():
                self._build(message)
            case CancelBuild():
                self._cancel_build(message)
            case DropLayers():
                self._drop_layers(message)
            case PruneCaches():
                self._answer(message.ask_id, self._prune_caches())
            case RouterCertificate():
                self._certify(message.certificate, message.key)
            case RouterRequest() | RouterCancel():
                if self._router is not None:
                    self._router.handle(message)
            case _:
                log.error("a message with no handler", message=type(message).__name__)

    # ── messages ──────────────────────────────────────────────────────────────────────────────

    def _start_task(self, message: StartTask) -> None:
        if message.task_id in self._tasks or self._stopping:
            return
        self._run(
            Task(
                message,
                self._link,
                self._preparer,
                self._relay,
                self._clock,
                self._tunnels,
                self._templates,
            )
        )

    def _start_sandbox(self, message: StartSandbox) -> None:
        if message.task_id in self._tasks or self._stopping:
            return
        keep = self.snapshots.keep if self.snapshots is not None else None
        self._run(Sandbox(message, self._link, self._preparer, self._clock, self.execute, keep))

    async def _start_sidecar(self, message: StartSidecar) -> None:
        if self._stopping:
            raise UnavailableError("the node is stopping")
        owner = self._sandbox(message.task_id)
        await owner.started()
        await self.sidecars.start(owner, message.name, message.start, self.execute)

    async def _life(self, task: Hosted) -> None:
        try:
            await task.run()
        finally:
            await self.sidecars.end(task.task_id)

    def _run(self, task: Hosted) -> None:
        self._tasks[task.task_id] = task
        run = asyncio.create_task(self._life(task), name=task.task_id)
        self._runs[task.task_id] = run
        run.add_done_callback(lambda _: self._has_ended(task.task_id))

    def _has_ended(self, task_id: str) -> None:
        task = self._tasks.pop(task_id, None)
        self._runs.pop(task_id, None)
        if self._tunnels is not None:
            self._tunnels.close(task_id)
        if isinstance(task, Sandbox):
            self._ended.add(task)

    def find(self, task_id: str) -> Hosted | None:
        """What runs under that id, or a sandbox that ended not long ago."""
        return self._tasks.get(task_id) or self._ended.find(task_id) or self.sidecars.find(task_id)

    def _answer(self, ask_id: int, work: Coroutine[Any, Any, int | None]) -> None:
        """Do what the server asked for and say what became of it."""

        async def run() -> None:
            try:
                number = await work
            except HomeportError as error:
                answer = Answer(ask_id, error.code.value, error.message)
            except OSError as error:
                answer = Answer(ask_id, Code.UNAVAILABLE.value, f"on the node: {error}")
            else:
                answer = Answer(ask_id, number=number or 0)
            self._link.send(answer)

        task = asyncio.create_task(run())
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def _tell_usage(self, message: AskUsage) -> None:
        found = self.find(message.task_id)
        usage = found.usage() if found is not None else []
        self._link.send(Answer(message.ask_id, usage=usage))

    async def _write_stdin(self, message: WriteStdin) -> None:
        sandbox = self._sandbox(message.task_id)
        await sandbox.write_stdin_numbered(message.index, message.data, eof=message.eof)

    async def _reload_volumes(self, message: ReloadVolumes) -> None:
        sandbox = self._sandbox(message.task_id)
        await sandbox.started()
        await sandbox.reload_volumes()

    async def _take_snapshot(self, message: TakeSnapshot) -> None:
        sandbox = self._sandbox(message.task_id)
        if self.snapshots is None:
            raise UnavailableError("this node takes no snapshots")
        await sandbox.started()
        await self.snapshots.take(sandbox, message.image_id, message.ttl_s)

    async def _take_memory(self, message: TakeMemory) -> None:
        sandbox = self._sandbox(message.task_id)
        if self.snapshots is None:
            raise UnavailableError("this node takes no snapshots")
        await sandbox.started()
        check_memory(self.sidecars, message.task_id)
        await self.snapshots.take_memory(sandbox, message.snapshot_id)

    async def _open_tunnel(self, message: OpenTunnel) -> int:
        if self._tunnels is None:
            raise ConflictError("this node has no tunnels")
        port = TunnelPort(message.port, message.unencrypted, message.h2)
        target = self.find(message.task_id)
        if target is None:
            raise NotFoundError(f"the container {message.task_id} does not run")
        own = Place(message.host, message.certificate, message.key) if message.host else None
        if not message.is_door:
            return await self._tunnels.open(message.task_id, target, port, own, message.sources)

        def make(contexts: Contexts) -> Tunnel:
            verify = verifier(lambda: self._connect_signer, message.task_id)
            return Door(target, verify, lambda: contexts(False), message.sources)

        return await self._tunnels.listen(message.task_id, port, make, own)

    def _certify(self, certificate: str, key: str) -> None:
        if not certificate:
            return
        if self._tunnels is not None:
            self._tunnels.certify(certificate, key)
        if self._router is not None:
            self._router.certify(certificate, key)

    def _sandbox(self, task_id: str) -> Sandbox:
        found = self.find(task_id)
        if not isinstance(found, Sandbox):
            raise NotFoundError("the sandbox is not on its node any more")
        return found

    def _deliver(self, message: DeliverInputs) -> None:
        task = self._tasks.get(message.task_id)
        if not isinstance(task, Task):
            keys = [(item.input_id, item.retry_count) for item in message.inputs]
            self._link.send(InputsReturned(message.task_id, keys))
            return
        task.deliver(message.inputs)

    def _cancel(self, message: CancelInputs) -> None:
        task = self._tasks.get(message.task_id)
        if isinstance(task, Task):
            task.cancel(message.input_ids, gentle=message.gentle)

    def _recall(self, message: RecallInputs) -> None:
        task = self._tasks.get(message.task_id)
        if isinstance(task, Task):
            task.recall(message.inputs)

    def _stop_task(self, message: StopTask) -> None:
        task = self._tasks.get(message.task_id)
        if task is not None:
            task.stop(graceful=message.graceful, grace_s=message.grace_s)

    def _build(self, message: BuildImage) -> None:
        if self._builds is not None:
            self._builds.start(message)

    def _cancel_build(self, message: CancelBuild) -> None:
        if self._builds is not None:
            self._builds.cancel(message.build_id)

    def _drop_layers(self, message: DropLayers) -> None:
        if self._room is not None:
            drop = asyncio.create_task(self._room.drop(message.keys, others=message.others))
            self._drops.add(drop)
            drop.add_done_callback(self._drops.discard)

    async def _prune_caches(self) -> int:
        return await self._caches.prune() if self._caches is not None else 0

    # ── the end ───────────────────────────────────────────────────────────────────────────────

    @property
    def task_ids(self) -> list[str]:
        """The tasks there are."""
        return list(self._tasks)

    async def stop(self, grace_s: float) -> None:
        """End all containers: interrupt, kill after ``grace_s``; returns when nothing is left."""
        self._stopping = True
        if self._templates is not None:
            await self._templates.close()
        for answer in list(self._answers):
            answer.cancel()
        for task in self._tasks.values():
            task.stop(graceful=False, grace_s=grace_s, reason="the node is stopping")
        if self._builds is not None:
            await self._builds.stop()
        runs = list(self._runs.values())
        if runs:
            _done, late = await asyncio.wait(runs, timeout=grace_s + 10.0)
            for run in late:
                run.cancel()
            if late:
                await asyncio.wait(late, timeout=10.0)
        self._ended.close()


def _unique(keys: list[Key]) -> list[Key]:
    return list(dict.fromkeys(keys))


class EndedSandboxes:
    """Sandboxes that have ended and whose output can still be read; bounded."""

    def __init__(self) -> None:
        self._sandboxes: OrderedDict[str, tuple[Sandbox, asyncio.TimerHandle]] = OrderedDict()
        self._bytes = 0

    def add(self, sandbox: Sandbox) -> None:
        """Keep it for a while."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(OUTPUT_S, self._drop, sandbox.task_id)
        self._sandboxes[sandbox.task_id] = (sandbox, timer)
        self._bytes += sandbox.stdio.kept
        while len(self._sandboxes) > OUTPUT_COUNT_MAX or self._bytes > OUTPUT_BYTES_MAX:
            self._drop(next(iter(self._sandboxes)))

    def find(self, task_id: str) -> Sandbox | None:
        found = self._sandboxes.get(task_id)
        return found[0] if found else None

    def close(self) -> None:
        """Forget all."""
        for task_id in list(self._sandboxes):
            self._drop(task_id)

    def _drop(self, task_id: str) -> None:
        sandbox, timer = self._sandboxes.pop(task_id)
        timer.cancel()
        self._bytes -= sandbox.stdio.kept
        sandbox.forget()
