"""The node agent: wiring, start, stop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import structlog

from homeport.kernel import ids
from homeport.kernel.clock import SystemClock
from homeport.kernel.errors import ConflictError, InvalidError
from homeport.kernel.resources import Resources
from homeport.link.connect import connect_link
from homeport.link.framing import FrameProtocol
from homeport.link.messages import LayersDropped, RuntimesKnown, ServerMessage
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
from homeport.node.isolation import ClosableRuntime, Isolation
from homeport.node.layers import LayerStore
from homeport.node.link import NodeLink, Wire
from homeport.node.mounts import MountStore
from homeport.node.prepare import Preparer
from homeport.node.room import LayerRoom, default_bound
from homeport.node.router.service import CommandRouter
from homeport.node.runtime.create import check_default
from homeport.node.runtimes import NodeRuntimes
from homeport.node.sandbox_snapshots import Snapshots
from homeport.node.sidecars import Sidecars
from homeport.node.supervisor import Hosted, Supervisor
from homeport.node.templates.pool import Templates
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
    """As the setting: ``auto`` is runsc where that works, empty the same as of functions."""
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
            runtimes = self._take(stack)
            runtime = await runtimes.default(stack)
            isolation = await runtimes.isolation(stack, runtime)
            await self._serve(stack, runtimes.node_id, runtime, isolation)

    async def sweep(self) -> None:
        """Undo what a node that was killed left on the machine, and no more.

        Raises ``ConflictError`` if this home has a running node.
        """
        async with contextlib.AsyncExitStack() as stack:
            await self._take(stack).sweep()

    def _take(self, stack: contextlib.AsyncExitStack) -> NodeRuntimes:
        """Be this home's only node until ``stack`` is closed."""
        root, config = self._config.root, self._config
        check_default(config.runtime)
        root.mkdir(parents=True, exist_ok=True)
        stack.callback(os.close, lock(root / "lock"))
        return NodeRuntimes(
            config.home,
            read_node_id(root / "id"),
            config.runtime,
            config.sandbox_runtime,
            config.name_servers,
            config.sandboxes_prepared_max,
        )

    async def _serve(
        self,
        stack: contextlib.AsyncExitStack,
        node_id: str,
        runtime: ClosableRuntime,
        isolation: Isolation,
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
            isolation,
            layers,
            mounts,
            BytecodeStore(mounts),
            volumes,
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
            isolation=isolation,
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
        isolation.disappointed = lambda: link.send_kept(RuntimesKnown(isolation.names))
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
