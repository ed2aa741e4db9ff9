"""The node agent: wiring, start, stop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp
import structlog

from homeport.kernel import ids
from homeport.kernel.clock import SystemClock
from homeport.kernel.errors import ConflictError, InvalidError
from homeport.kernel.resources import Resources
from homeport.link.connect import connect_link
from homeport.link.framing import FrameProtocol
from homeport.link.messages import LayersDropped, ServerMessage
from homeport.node import caches
from homeport.node.blob_relay import BlobRelay
from homeport.node.buckets import Buckets
from homeport.node.builder.builder import ImageBuilder
from homeport.node.builds import NodeBuilds
from homeport.node.bytecode import BytecodeStore
from homeport.node.caches import Caches
from homeport.node.fetch import FileSource
from homeport.node.gpus.devices import NodeGpus
from homeport.node.gpus.inventory import NO_GPUS, GpuOptions, discover
from homeport.node.layers import LayerStore
from homeport.node.link import NodeLink, Wire
from homeport.node.mounts import MountStore
from homeport.node.prepare import Preparer
from homeport.node.room import LayerRoom, default_bound
from homeport.node.router.service import CommandRouter
from homeport.node.runtime.create import AUTO, check_default, create_runtime
from homeport.node.runtime.port import Runtime
from homeport.node.sandbox_snapshots import Snapshots
from homeport.node.sidecars import Sidecars
from homeport.node.supervisor import Hosted, Supervisor
from homeport.node.templates.pool import Templates
from homeport.node.trial import works
from homeport.node.tunnels import Tunnels
from homeport.node.volumes.layers import VolumeLayers
from homeport.node.volumes.mounted import NodeVolumes
from homeport.node.volumes.source import VolumeSource

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

STOP_GRACE_S = 5.0
"""How long containers may run their exit handlers when the node stops."""
ACKNOWLEDGE_S = 2.0
"""How long a stopping node waits for the server to take its last reports."""
RESERVE_MB = 1024
"""Memory kept for the machine itself; at most a tenth of all."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What a node is told. ``token`` reads the token anew at each use: it may be replaced."""

    home: Path
    server_url: str
    token: Callable[[], str]
    runtime: str = ""
    sandbox_runtime: str = ""
    """As the setting; ``auto`` tries runsc."""
    registry_mirrors: Mapping[str, str] = field(default_factory=dict[str, str])
    layers_bytes_max: int = 0
    caches_bytes_max: int = 0
    router_listen: str = "127.0.0.1"
    """Address that the command router listens on."""
    router_port: int = 0
    router_host: str = ""
    """The router's host name for clients; empty = the one they use for the server."""
    name_servers: Sequence[str] = ()
    """What containers ask; none = the machine's own name servers."""

    templates_max: int = 0
    """Containers that wait ahead of their tasks; 0 = none."""
    sandboxes_prepared_max: int = 0
    """Sandboxes of gVisor that wait; 0 = none."""
    gpus: GpuOptions = NO_GPUS
    """Where GPUs are looked for; the default: nowhere."""

    @property
    def root(self) -> Path:
        return self.home / "node"


class ClosableRuntime(Runtime, Protocol):
    """A runtime with things of its own to undo."""

    async def close(self) -> None: ...


class Agent:
    """One node of one home. ``run`` until cancelled or ``stop`` is asked for."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask ``run`` to end all containers and return."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until ``stop``. Raises ``ConflictError`` if this home has a running node."""
        async with contextlib.AsyncExitStack() as stack:
            node_id, runtime, sandboxes = await self._take(stack)
            await self._serve(stack, node_id, runtime, sandboxes)

    async def sweep(self) -> None:
        """Undo what a node that was killed left on the machine, and no more.

        Raises ``ConflictError`` if this home has a running node.
        """
        async with contextlib.AsyncExitStack() as stack:
            await self._take(stack)

    async def _take(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[str, ClosableRuntime, ClosableRuntime]:
        """Be this home's only node, with nothing of an earlier one about; ``stack`` undoes it."""
        root = self._config.root
        check_default(self._config.runtime)
        root.mkdir(parents=True, exist_ok=True)
        stack.callback(os.close, lock(root / "lock"))
        node_id = read_node_id(root / "id")
        runtime = await self._make_runtime(stack, self._config.runtime, root / "runtime", node_id)
        name = await self._choose_sandbox_runtime(runtime)
        sandboxes, place = runtime, root / "runtime-sandboxes"
        if name != runtime.name:
            sandboxes = await self._make_runtime(stack, name, place, node_id)
        elif place.is_dir():  # an earlier node's, with other settings
            other = await create_runtime(self._config.runtime, place, node_id)
            await other.sweep()
            await other.close()
        await asyncio.to_thread(shutil.rmtree, root / "tasks", True)
        return node_id, runtime, sandboxes

    async def _make_runtime(
        self, stack: contextlib.AsyncExitStack, name: str, place: Path, node_id: str
    ) -> ClosableRuntime:
        most = self._config.sandboxes_prepared_max
        runtime = await create_runtime(name, place, node_id, self._config.name_servers, most)
        stack.push_async_callback(runtime.close)
        swept = await runtime.sweep()
        if swept:
            log.warning("left-overs of an earlier run were removed", containers=swept)
        return runtime

    async def _choose_sandbox_runtime(self, runtime: Runtime) -> str:
        """The name of what isolates sandboxes, and a line about it in the log."""
        wanted = self._config.sandbox_runtime
        if wanted != AUTO:
            name = wanted or runtime.name
            log.info("sandboxes are isolated", runtime=name)
            return name
        trial = await works(self._config.home, "runsc")
        if trial.failure:
            log.warning("sandboxes are isolated", runtime=runtime.name, not_runsc=trial.failure)
            return runtime.name
        log.info("sandboxes are isolated", runtime="runsc", with_=trial.subject)
        return "runsc"

    async def _serve(
        self,
        stack: contextlib.AsyncExitStack,
        node_id: str,
        runtime: ClosableRuntime,
        sandboxes: ClosableRuntime,
    ) -> None:
        root = self._config.root
        link = NodeLink(self._connect)
        session = await stack.enter_async_context(aiohttp.ClientSession())

        def serve_router(listening: socket.socket) -> Callable[[], None]:
            return router.serve(listening)

        relay = BlobRelay(lambda: self._http_url(link), serve_router)
        await relay.start()
        stack.push_async_callback(relay.close)
        layers = LayerStore(root / "layers")
        room = LayerRoom(
            layers,
            self._config.layers_bytes_max or default_bound(root),
            lambda keys: link.send(LayersDropped(keys)),
        )
        stack.push_async_callback(room.stop)
        bound = self._config.caches_bytes_max or caches.default_bound(root)
        kept = await asyncio.to_thread(Caches, root / "builder", bound)  # it clears up
        kept.look()
        stack.push_async_callback(kept.stop)
        source = FileSource(
            session, lambda: self._http_url(link), lambda: link.blob_root, self._config.token
        )
        mounts = MountStore(root / "mounts", source)
        volume_source = VolumeSource(session, lambda: self._http_url(link), self._config.token)
        volumes = NodeVolumes(VolumeLayers(root / "volumes", volume_source, source), volume_source)
        builder = ImageBuilder(
            runtime,
            layers,
            mounts,
            root / "builder",
            mirrors=self._config.registry_mirrors,
            memory_mb=capacity().memory_mb,
            volumes=volumes,
            kept=kept,
        )

        def find(task_id: str) -> Hosted | None:
            return supervisor.find(task_id)

        snapshots = Snapshots(layers, link, SystemClock())
        inventory = await asyncio.to_thread(discover, self._config.gpus)
        gpus = NodeGpus(inventory, root / "gpus")
        await asyncio.to_thread(gpus.ready)
        buckets = Buckets(root / "buckets", self._config.token)
        buckets.start()
        stack.push_async_callback(buckets.stop)
        preparer = Preparer(
            root / "tasks",
            {runtime.name: runtime, sandboxes.name: sandboxes},
            runtime.name,
            layers,
            mounts,
            BytecodeStore(mounts),
            volumes,
            sandboxes.name,
            gpus,
            buckets,
        )
        sidecars = Sidecars(link, preparer, SystemClock())
        router = CommandRouter(
            find,
            link,
            root / "outputs",
            snapshots,
            sidecars,
            listen=self._config.router_listen,
            port=self._config.router_port,
            host=self._config.router_host,
        )
        await router.start()
        stack.push_async_callback(router.stop)
        tunnels = Tunnels(self._config.router_listen, self._config.router_host or "localhost")
        stack.callback(tunnels.stop)
        templates = None
        if self._config.templates_max > 0:
            templates = Templates(
                preparer,
                SystemClock(),
                count_max=self._config.templates_max,
                upstream=link,
                attach=relay.attach,
            )
            templates.start()
            stack.push_async_callback(templates.close)
        supervisor = Supervisor(
            node_id=node_id,
            capacity=capacity(len(gpus.gpus)),
            runtimes=sorted({runtime.name, sandboxes.name}),
            gpus=gpus.gpus,
            link=link,
            preparer=preparer,
            relay=relay,
            builds=NodeBuilds(builder, link),
            clock=SystemClock(),
            room=room,
            caches=kept,
            router=router,
            snapshots=snapshots,
            sidecars=sidecars,
            tunnels=tunnels,
            templates=templates,
        )
        supervisor.execute = router.execute
        linked = asyncio.create_task(link.run(supervisor))
        try:
            await self._until_stop(linked)
        finally:
            await supervisor.stop(STOP_GRACE_S)
            await link.acknowledged(ACKNOWLEDGE_S)
            linked.cancel()
            await asyncio.wait([linked])

    async def _until_stop(self, linked: asyncio.Task[None]) -> None:
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait([stop, linked], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if linked.done():
            linked.result()  # a defect: let it be seen

    def _http_url(self, link: NodeLink) -> str:
        """The server's HTTP side: the address it was dialled at is known to work from here."""
        return self._config.server_url if link.http_url else ""

    async def _connect(
        self,
        on_message: Callable[[ServerMessage], None],
        on_close: Callable[[Exception | None], None],
    ) -> Wire:
        def protocol() -> Wire:
            return FrameProtocol(ServerMessage, on_message, on_close)

        _, wire = await connect_link(self._config.server_url, self._config.token(), protocol)
        return wire


def lock(path: Path) -> int:
    """A descriptor that holds ``path`` locked. Raises ``ConflictError`` if another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConflictError(f"a node is running in {path.parent} already") from None
    return descriptor


def read_node_id(path: Path) -> str:
    """This node's id, made at its first start."""
    with contextlib.suppress(FileNotFoundError):
        found = path.read_text().strip()
        if ids.is_id(found, ids.NODE):
            return found
        log.warning("the node's id file is damaged; this node is a new one", path=str(path))
    made = ids.new(ids.NODE)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(made + "\n")
    temporary.replace(path)
    return made


def read_token(path: Path) -> str:
    """The node's token: ``node_token`` of a credentials file (TOML), else the file's only line.

    Raises ``InvalidError`` if there is none.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise InvalidError(
            f"the node's token cannot be read from {path}: {error.strerror}"
        ) from None
    if path.suffix == ".toml":
        try:
            text = str(tomllib.loads(text).get("node_token", ""))
        except tomllib.TOMLDecodeError as error:
            raise InvalidError(f"{path} is not valid TOML: {error}") from None
    token = text.strip()
    if not token:
        raise InvalidError(f"there is no node token in {path}")
    return token


def capacity(gpus: int = 0) -> Resources:
    """What of this machine may be given to containers, with so many GPUs."""
    cores = len(os.sched_getaffinity(0))
    total_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024)
    return Resources(cores * 1000, total_mb - min(RESERVE_MB, total_mb // 10), gpus)
