"""The server: settings → wiring → start → stop. The only module that knows every class."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import structlog
import uvloop
from aiohttp import web

from homeport import __version__
from homeport.apps.deployments import Deployments
from homeport.apps.model import App
from homeport.apps.retention import EndedApps
from homeport.apps.rpc import AppsRpc
from homeport.apps.service import AppService
from homeport.apps.store import AppStore
from homeport.blobs.rpc import BlobRpc
from homeport.blobs.service import BlobService
from homeport.blobs.signing import UrlSigner
from homeport.blobs.store import BlobStore
from homeport.calls.rpc import CallsRpc
from homeport.calls.service import CallService
from homeport.calls.store import CallStore
from homeport.calls.streams import DataStreams
from homeport.dashboard.pages import Pages, Subjects
from homeport.dicts import store as dict_store
from homeport.dicts.model import DICT
from homeport.dicts.rpc import DictRpc
from homeport.dicts.service import DictService
from homeport.dicts.store import DictStore
from homeport.environments.rpc import EnvironmentsRpc
from homeport.environments.service import EnvironmentService
from homeport.functions.rpc import FunctionsRpc
from homeport.functions.service import FunctionService
from homeport.functions.store import FunctionStore
from homeport.functions.variant_wire import rebound
from homeport.gateway.access import Access
from homeport.gateway.acme import AcmeCertificates
from homeport.gateway.direct import Direct
from homeport.gateway.http import create_http_app
from homeport.gateway.http1 import Http1
from homeport.gateway.listener import Listener
from homeport.gateway.relay import Relay
from homeport.gateway.splice import Splice
from homeport.gateway.tls import Certificates, GivenCertificate
from homeport.gateway.web import WebGateway
from homeport.history.rpc import HistoryRpc
from homeport.history.service import HistoryService
from homeport.history.statistics import StatisticsService
from homeport.history.store import HistoryStore
from homeport.housekeeping import Housekeeping
from homeport.images.model import ImageRecord
from homeport.images.names import NamedImages
from homeport.images.rpc import ImagesRpc
from homeport.images.service import ImageService
from homeport.images.snapshots import ImageSnapshots
from homeport.images.store import ImageNameStore, ImageStore
from homeport.images.upkeep import ImageUpkeep
from homeport.images.wire import metadata as image_metadata
from homeport.kernel.certificates import Authority
from homeport.kernel.clock import Clock, SystemClock
from homeport.kernel.descriptors import raise_limit
from homeport.kernel.errors import HomeportError, InvalidError
from homeport.kernel.gpus import listed
from homeport.kernel.logs import configure_logging
from homeport.kernel.resources import Limits
from homeport.kernel.signing import Signer
from homeport.kernel.wall import SystemWallClock, WallClock
from homeport.link.messages import ARRIVAL_PATH, IMAGE_PATH, SECRETS_PATH, SIDECAR_PATH, LogEntry
from homeport.logs.rpc import LogRpc
from homeport.logs.service import LogService
from homeport.logs.store import LogStore
from homeport.mounts.global_mounts import GlobalMounts
from homeport.mounts.rpc import MountRpc
from homeport.mounts.service import MountService
from homeport.mounts.store import MountStore
from homeport.nfs.model import NETWORK_FILE_SYSTEM
from homeport.nfs.rpc import NetworkFileSystemRpc
from homeport.nfs.service import NetworkFileSystems
from homeport.nodes.forward import RpcForwarder
from homeport.nodes.routers import LOCAL_HOSTS, Routers
from homeport.nodes.service import NodeService
from homeport.objects.model import Kind
from homeport.objects.service import Erasing, Objects, nothing_to_erase
from homeport.objects.store import ObjectStore
from homeport.programs.rpc import ProgramsRpc
from homeport.queues import store as queue_store
from homeport.queues.model import QUEUE
from homeport.queues.rpc import QueueRpc
from homeport.queues.service import QueueService
from homeport.queues.store import QueueStore
from homeport.rpc.admission import Admission
from homeport.rpc.auth import Authenticator
from homeport.rpc.rates import Rates
from homeport.rpc.registry import Registry
from homeport.sandboxes.costs import Prices
from homeport.sandboxes.launcher import SandboxLauncher
from homeport.sandboxes.memory import MemorySnapshots, MemorySnapshotStore
from homeport.sandboxes.memory_rpc import MemorySnapshotRpc
from homeport.sandboxes.persistent import PersistentSandboxes, PersistentStore
from homeport.sandboxes.persistent_rpc import PersistentSandboxRpc
from homeport.sandboxes.rpc import SandboxRpc
from homeport.sandboxes.service import SandboxService
from homeport.sandboxes.sidecars import SidecarService
from homeport.sandboxes.sidecars_rpc import SidecarRpc
from homeport.sandboxes.statistics import SandboxStatistics
from homeport.sandboxes.store import SandboxStore
from homeport.scheduler.build_functions import BuildFunctions
from homeport.scheduler.launcher import Launcher
from homeport.scheduler.service import Scheduler
from homeport.schedules.service import ScheduleService
from homeport.schedules.store import ScheduleStore
from homeport.secrets.crypt import SecretBox
from homeport.secrets.rpc import SecretRpc
from homeport.secrets.service import SecretService
from homeport.secrets.store import SecretStore
from homeport.settings import Settings, load
from homeport.storage.keyfile import read_or_create
from homeport.storage.opening import open_contents, open_database
from homeport.storage.operations import OperationLog
from homeport.tasks.rpc import TasksRpc
from homeport.tasks.service import TaskService
from homeport.tasks.store import TaskStore
from homeport.transport.grpc_server import GrpcServer
from homeport.volumes import store as volume_store
from homeport.volumes.blocks import Blocks
from homeport.volumes.model import VOLUME
from homeport.volumes.rpc import VolumeRpc
from homeport.volumes.service import VolumeService
from homeport.volumes.store import VolumeStore
from homeport.volumes.wire import handle as volume_handle
from homeport.web.requests import WebRequests
from homeport.web.rpc import WebRpc
from homeport.web.service import WebRoutes
from homeport.web.tokens import ProxyTokens
from homeport.workspace import credentials as credentials_file
from homeport.workspace.flows import TokenFlows
from homeport.workspace.rpc import WorkspaceRpc
from homeport.workspace.service import WorkspaceService
from homeport.workspace.tokens import Tokens

log = structlog.get_logger(__name__)

STOP_GRACE_S = 3.0
"""Running RPCs have that long when the server stops; long polls end at once."""


class Server:
    """One server process: everything wired, started and stopped in order."""

    def __init__(
        self,
        settings: Settings,
        listening: socket.socket | None = None,
        *,
        wall_clock: WallClock | None = None,
    ) -> None:
        self.settings = settings
        self._listening = listening
        clock = self._clock = SystemClock()
        home = settings.home
        self._database = open_database(settings, on_lost=_end)
        key = read_or_create(home / "blob.key")
        self._files = open_contents(settings, self._database, clock, key=key)
        operations = self._operations = OperationLog(self._database, clock)
        self._tokens = Tokens(self._database, clock, operations)
        self._flows = TokenFlows(self._tokens, clock)
        self._environments = EnvironmentService(self._database, clock, operations)
        self._objects: list[Objects] = []
        self._workspace = WorkspaceService(self._database, name=settings.workspace)
        self._logs = LogService(
            LogStore(self._database), retention_s=settings.log_retention_s, clock=clock
        )
        self._blobs = BlobService(
            BlobStore(self._database),
            self._files,
            UrlSigner(key),
            retention_s=settings.result_retention_s,
        )
        self._mounts = MountService(
            MountStore(self._database), self._files, self._blobs, GlobalMounts(self._files)
        )
        self._secrets = SecretService(
            SecretStore(self._database), SecretBox(read_or_create(home / "secret.key")), operations
        )
        self._dicts = DictService(
            DictStore(self._database),
            self._objects_of(DICT, dict_store.erase),
            self._files,
            self._operations,
            clock,
        )
        self._queues = QueueService(
            QueueStore(self._database),
            self._objects_of(QUEUE, queue_store.erase),
            self._operations,
            clock,
            items_max=settings.queue_items_max,
        )
        volume_objects = self._objects_of(VOLUME, volume_store.erase)
        self._volumes = VolumeService(
            volume_objects,
            VolumeStore(self._database),
            Blocks(self._files, key, clock),
            self._files,
            self._blobs,
            clock=clock,
        )
        self._nfs_objects = self._objects_of(NETWORK_FILE_SYSTEM, nothing_to_erase)
        self._nfs = NetworkFileSystems(
            self._nfs_objects,
            settings.nfs_root,
            self._files,
            self._blobs,
            self._database,
            operations,
            fsync=settings.durability == "power",
        )
        self._functions = FunctionService(FunctionStore(self._database))
        self._tasks = TaskService(TaskStore(self._database), clock)
        authority = Authority.from_folder(home)
        routers = Routers(
            authority,
            read_or_create(home / "router.key"),
            clock,
        )
        self._nodes = NodeService(
            authorize=self._tokens.verify_node,
            heartbeat_s=settings.heartbeat_s,
            http_url=lambda: self.url,
            blob_root="" if settings.blob_store else str(settings.blob_root),
            routers=routers,
        )
        routers.use(self._nodes)
        build_functions = BuildFunctions(self._functions)
        self._images = ImageService(
            ImageStore(self._database),
            self._nodes,
            mount_digest=self._mounts.digest,
            secret_env=self._secrets.env,
            read_blob=self._blobs.read,
            prepare_volume=self._volumes.prepare_mount,
            function_builder=build_functions,
            has_layers=self._nodes.has_layers,
            build_timeout_s=settings.build_timeout_s,
            limits=Limits(pids=settings.pids_max),
            clock=clock,
            log_sink=self._image_log,
        )
        names = NamedImages(
            ImageNameStore(self._database), self._images, self._environments, clock, operations
        )
        snapshots = ImageSnapshots(self._images, names, self._nodes, self._images_in_use, clock)
        sandbox_launcher = SandboxLauncher(
            settings,
            self._images,
            self._mounts,
            self._secrets,
            self._volumes,
            volume_objects,
            self._nfs,
        )
        sandbox_store = SandboxStore(self._database)
        self._sandboxes = SandboxService(
            sandbox_store,
            self._nodes,
            self._tasks,
            self._logs,
            self._secrets,
            sandbox_launcher,
            snapshots,
            clock,
        )
        self._persistent = PersistentSandboxes(
            PersistentStore(self._database),
            self._sandboxes,
            lambda image_id: self._images.find(image_id) is not None,
        )
        self._memory = MemorySnapshots(
            MemorySnapshotStore(self._database),
            self._sandboxes,
            self._nodes,
            snapshots,
            self._secrets,
            clock,
        )
        self._sandboxes.use_memory(self._memory.record)
        self._scheduler = Scheduler(
            settings,
            clock,
            self._nodes,
            self._tasks,
            self._functions,
            self._logs,
            build_functions,
            self._sandboxes,
        )
        self._apps = AppService(
            AppStore(self._database),
            self._scheduler,
            self._logs,
            clock,
            heartbeat_timeout_s=settings.app_heartbeat_timeout_s,
        )
        self._calls = CallService(
            CallStore(self._database),
            self._scheduler,
            clock,
            inputs_pending_max=settings.inputs_pending_max,
            function_inputs_max=settings.function_inputs_max,
            result_retention_s=settings.result_retention_s,
            abandoned_call_s=settings.abandoned_call_s,
        )
        self._history = HistoryService(
            HistoryStore(self._database), self._calls, self._functions, clock
        )
        self._schedules = ScheduleService(
            ScheduleStore(self._database),
            self._apps,
            self._functions,
            self._calls,
            self._logs,
            wall_clock or SystemWallClock(),
        )
        self._apps.on_change(self._schedules.app_changed)
        self._web_routes = WebRoutes(
            self._functions,
            self._apps,
            self._environments,
            workspace=settings.workspace,
            domain=settings.web_domain,
            port=lambda: self._port,
            scheme="https" if settings.tls_certificate or settings.acme_directory else "http",
        )
        signer = Signer.from_file(home / "signing.key", clock)
        self._proxy_tokens = ProxyTokens(self._database, self._environments, signer, clock)
        streams = DataStreams()
        self._calls.on_forget(streams.drop)
        launcher = Launcher(
            settings,
            self._apps,
            self._functions,
            self._images,
            self._mounts,
            self._secrets,
            self._volumes,
            self._nfs,
            lambda object_id: volume_handle(volume_objects.find(object_id)),
        )
        self._environments.on_deleting(self._apps.environment_deleting)
        self._environments.on_deleting(names.environment_deleting)
        self._environments.on_deleting(self._secrets.delete_of_environment)
        for objects in self._objects:
            self._environments.on_deleting(objects.delete_of_environment)
        self._environments.on_renamed(self._apps.environment_renamed)
        self._scheduler.use(self._calls, self._apps, launcher)
        build_functions.use(self._calls)
        self._tasks.use(self._scheduler)
        deployments = Deployments(self._apps, self._functions, clock, rebound=rebound)
        subjects = Subjects(self._apps, self._tasks, self._sandboxes)
        prices = Prices(settings.price_core_hour, settings.price_gib_hour, settings.price_gpu_hour)
        sandbox_rpc = SandboxRpc(
            self._sandboxes,
            SandboxStatistics(sandbox_store, self._sandboxes, prices, clock),
            self._apps,
            self._environments,
            self._logs,
            routers,
            image_metadata=lambda image_id: image_metadata(self._images.get(image_id)),
        )
        sidecar_rpc = SidecarRpc(SidecarService(self._sandboxes, sandbox_launcher, self._nodes))
        registry = Registry(
            [
                AppsRpc(
                    self._apps,
                    self._functions,
                    self._environments,
                    self._tasks,
                    deployments,
                    public_url=lambda: self.url,
                ),
                BlobRpc(self._blobs),
                CallsRpc(self._calls, streams, self._functions, self._apps, self._blobs),
                DictRpc(self._dicts, self._environments),
                EnvironmentsRpc(self._environments, self._workspace),
                FunctionsRpc(
                    self._functions,
                    self._apps,
                    self._environments,
                    self._scheduler,
                    self._web_routes,
                    clock,
                    deployments,
                    self._secrets.mark,
                ),
                HistoryRpc(
                    self._history,
                    StatisticsService(
                        self._history,
                        self._functions,
                        self._tasks,
                        self._sandboxes,
                        self._nodes,
                        clock,
                    ),
                    self._functions,
                    self._apps,
                    self._tasks,
                ),
                ImagesRpc(self._images, names),
                LogRpc(self._logs, subjects),
                MountRpc(self._mounts, self._environments),
                NetworkFileSystemRpc(
                    self._nfs_objects, self._nfs, self._environments, volume_objects
                ),
                ProgramsRpc(self._tasks, self._nodes),
                QueueRpc(self._queues, self._environments),
                sandbox_rpc,
                PersistentSandboxRpc(self._persistent, sandbox_rpc),
                MemorySnapshotRpc(self._memory, routers),
                sidecar_rpc,
                SecretRpc(self._secrets, self._environments),
                TasksRpc(self._tasks, self._apps, self._environments, routers),
                VolumeRpc(volume_objects, self._volumes, self._environments),
                WebRpc(self._proxy_tokens, self._environments, self._functions, self._web_routes),
                WorkspaceRpc(
                    self._workspace,
                    self._environments,
                    self._tokens,
                    signer,
                    self._flows,
                ),
            ],
            authenticator=Authenticator(self._tokens),
            admission=Admission(
                home,
                clock,
                disk_reserve_mb=settings.disk_reserve_mb,
                memory_reserve_mb=settings.memory_reserve_mb,
            ),
            rates=Rates(clock, settings.caller_requests_per_s),
            log_calls=settings.log_level == "debug",
        )
        self._registry = registry
        self._nodes.use(
            self._scheduler,
            RpcForwarder(
                registry,
                self._scheduler.identify,
                {
                    ARRIVAL_PATH: self._arrival,
                    SECRETS_PATH: self._secret_env,
                    IMAGE_PATH: self._image_layers,
                    SIDECAR_PATH: sidecar_rpc.from_router,
                },
            ),
        )
        access = Access(self._proxy_tokens)
        direct = Direct(
            self._web_routes,
            self._calls,
            self._scheduler,
            access,
            app_page=self._app_page,
            served=self._history.served,
        )
        self._relay = Relay(direct)
        self._gateway = WebGateway(
            self._web_routes,
            WebRequests(self._calls, wait_s=settings.web_wait_s, blob=self._blobs.read),
            self._relay,
            access,
            app_page=self._app_page,
        )
        self._grpc = GrpcServer(
            registry,
            message_bytes_max=settings.message_bytes_max,
            application=self._gateway,
            is_elsewhere=self._web_routes.is_ours,
        )
        self._http = web.AppRunner(
            create_http_app(
                self._blobs,
                self._mounts,
                self._files,
                self._volumes,
                pages=Pages(
                    self._apps,
                    self._functions,
                    self._tasks,
                    self._scheduler,
                    self._logs,
                    self._web_routes.url,
                ),
                images=ImageUpkeep(self._images, names, self._nodes, self._images_in_use),
                flows=self._flows,
                verify_node=self._tokens.verify_node,
                is_elsewhere=self._web_routes.is_ours,
                health=self._health,
            ),
            access_log=None,
        )
        self._web = Http1(self._gateway)
        self._splice = Splice(direct, lambda host: self._web_protocol(host) or self._http_protocol)
        self._acme = _acme_certificates(settings, clock, self._leads_somewhere)
        if self._acme is not None:
            self._apps.on_change(self._certify)
        self._certificates = Certificates(
            authority,
            clock,
            hosts=[*sorted(LOCAL_HOSTS), settings.host, socket.gethostname(), settings.web_domain],
            is_ours=self._web_routes.is_ours,
            given=_given_certificate(settings),
            public=self._acme,
        )
        self._listener: Listener | None = None
        self._housekeeping = Housekeeping(
            self._files,
            prunable=[
                *(self._logs, self._blobs, self._tasks, self._dicts, self._volumes),
                self._sandboxes,
                self._persistent,
                self._memory,
                self._history,
                snapshots,
                EndedApps(
                    self._apps,
                    self._calls,
                    self._functions,
                    self._secrets,
                    self._history,
                    retention_s=max(settings.result_retention_s, settings.log_retention_s),
                    clock=clock,
                    needed=self._apps_of_images,
                ),
            ],
            contents=[
                self._blobs.contents,
                self._mounts.contents,
                self._dicts.file_contents,
                self._volumes.contents,
            ],
            interval_s=settings.housekeeping_interval_s,
        )

    def _objects_of(self, kind: Kind, erase: Erasing) -> Objects:
        objects = Objects(
            kind,
            ObjectStore(self._database),
            self._clock,
            erase=erase,
            operations=self._operations,
            ephemeral_timeout_s=self.settings.ephemeral_timeout_s,
        )
        self._objects.append(objects)
        return objects

    @property
    def url(self) -> str:
        """The URL under which programs on this machine reach the server."""
        host = self.settings.host
        if host in ("0.0.0.0", "::"):
            host = "127.0.0.1"
        return f"http://{host}:{self._port}"

    @property
    def _port(self) -> int:
        return self._listener.port if self._listener is not None else self.settings.port

    async def _arrival(self, task_id: str, _body: bytes) -> bytes:
        """When a node has been told of that task's sandbox. Raises ``HomeportError``."""
        await self._sandboxes.sent_to_node(task_id)
        return b""

    async def _secret_env(self, _task_id: str, body: bytes) -> bytes:
        """The variables of secrets for a node. Raises ``HomeportError``."""
        secret_ids = msgspec.msgpack.decode(body, type=list[str])
        return msgspec.msgpack.encode(await self._secrets.env(secret_ids))

    async def _image_layers(self, _task_id: str, body: bytes) -> bytes:
        """The layers of an image for a node. Raises ``HomeportError``."""
        return msgspec.msgpack.encode((await self._images.ready(body.decode())).layers)

    def _images_in_use(self) -> set[str]:
        """The images that functions of live apps and live sandboxes start from."""
        used: set[str] = set()
        for app in self._apps.all_live():
            for function_id in app.layout.function_ids.values():
                record = self._functions.find(function_id)
                if record is not None and record.spec is not None:
                    used.add(record.spec.image_id)
        return used | self._sandboxes.images_in_use() | self._persistent.images_in_use()

    async def _apps_of_images(self) -> set[str]:
        """The apps with functions or secrets that rebuilding an image takes."""
        function_ids, secret_ids = self._images.needed()
        needed: set[str] = set()
        for function_id in function_ids:
            record = self._functions.find(function_id)
            if record is not None:
                needed.add(record.app_id)
                secret_ids.update(record.spec.secret_ids if record.spec is not None else ())
        return needed | await self._secrets.apps_of(secret_ids)

    def _image_log(self, record: ImageRecord, entries: list[LogEntry]) -> None:
        """Build output belongs to the app that asked for the image, under the build's id."""
        if record.app_id:
            self._logs.append(record.app_id, record.build_id, "", entries, image_id=record.image_id)

    async def start(self) -> None:
        """Open the state, take up earlier work, listen."""
        self._files.prepare()
        await self._database.start()
        await self._files.start()
        await self._tokens.start()
        await self._workspace.start()
        await self._environments.start()
        credentials = await self._tokens.ensure_first_token(self.settings.home)
        await self._operations.start()
        for objects in self._objects:
            await objects.start()
        await self._nfs.start()
        await self._queues.start()
        await self._logs.start()
        await self._blobs.start()
        await self._images.start()
        await self._functions.start()
        await self._proxy_tokens.start()
        alive = await self._tasks.start()
        await self._sandboxes.start()
        await self._persistent.start()
        await self._apps.start()
        self._web_routes.start(self._functions.all())
        unfinished = await self._calls.start()
        await self._history.recover()
        await self._nodes.start()
        self._scheduler.recover(unfinished, alive)
        await self._schedules.start()
        await self._http.setup()
        await self._relay.start()
        if self._acme is not None:
            self._acme.start()
            self._acme.want([self.settings.web_domain])
            for app in self._apps.all_live():
                await self._certify(app)
        self._listener = Listener(
            self.settings.host,
            self.settings.port,
            grpc=self._grpc.protocol_factory,
            http=self._http_protocol,
            link=self._nodes.accept,
            web=self._web_protocol,
            tls=self._certificates.context,
            sock=self._listening,
        )
        await self._listener.start()
        credentials_file.write(
            self.settings.home, msgspec.structs.replace(credentials, server_url=self.url)
        )
        self._write_record()
        self._housekeeping.start()
        log.info("listening", url=self.url, home=str(self.settings.home), version=__version__)

    def _health(self) -> dict[str, Any]:
        """What ``/healthz`` reports."""
        return {
            "version": __version__,
            "nodes": len(self._nodes.nodes()),
            "gpus": "; ".join(
                sorted(listed(node.gpus) for node in self._nodes.nodes().values() if node.gpus)
            )
            or "none",
            "apps": sum(1 for _ in self._apps.all_live()),
            "containers": len(self._tasks.list()),
        }

    def _leads_somewhere(self, name: str) -> bool:
        return name == self.settings.web_domain or self._web_routes.find(name) is not None

    async def _certify(self, app: App) -> None:
        """Have certificates for the names of the app's web functions."""
        if self._acme is not None and app.is_live:
            self._acme.want(self._web_routes.names_of(app))

    def _app_page(self, app_id: str) -> str:
        return f"{self.url}/apps/{app_id}"

    def _web_protocol(self, host: str) -> Callable[[], asyncio.Protocol] | None:
        """Who serves a connection whose first request is for ``host``."""
        if not self._web_routes.is_ours(host):
            return None
        target = self._web_routes.find(host)
        return self._splice.protocol if target and target.is_spliced else self._web.protocol

    def _http_protocol(self) -> asyncio.Protocol:
        server = self._http.server
        assert server is not None
        return server()

    def _write_record(self) -> None:
        """``run/server.json``: where this process is to be found."""
        assert self._listener is not None
        self.settings.run_dir.mkdir(parents=True, exist_ok=True)
        record = {"pid": os.getpid(), "port": self._listener.port, "url": self.url}
        path = self.settings.run_dir / "server.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(record))
        temporary.replace(path)

    async def stop(self) -> None:
        """Stop accepting, end polls, commit what is queued."""
        if self._listener is not None:
            await self._listener.stop()
        if self._acme is not None:
            await self._acme.stop()
        await self._housekeeping.stop()
        await self._schedules.stop()
        await asyncio.gather(self._web.stop(STOP_GRACE_S), self._splice.stop(STOP_GRACE_S))
        await self._scheduler.stop()
        await self._memory.stop()
        await self._sandboxes.stop()
        await self._calls.stop()
        await self._history.stop()
        await self._images.stop()
        await self._grpc.stop(STOP_GRACE_S)
        await self._registry.stop()
        await self._nodes.stop()
        await self._apps.stop()
        for objects in self._objects:
            await objects.stop()
        await self._queues.stop()
        self._operations.stop()
        await self._http.cleanup()
        await self._relay.stop()
        await self._logs.drain()
        await self._database.stop()
        self._files.close()
        (self.settings.run_dir / "server.json").unlink(missing_ok=True)


def _given_certificate(settings: Settings) -> GivenCertificate | None:
    if not settings.tls_certificate:
        return None
    certificate, key = Path(settings.tls_certificate), Path(settings.tls_key)
    return GivenCertificate(certificate, key if settings.tls_key else None)


def _acme_certificates(
    settings: Settings, clock: Clock, is_served: Callable[[str], bool]
) -> AcmeCertificates | None:
    if not settings.acme_directory:
        return None
    try:
        from homeport.gateway.acme_orders import Orders
    except ImportError:
        raise InvalidError(
            "the setting acme_directory needs a package more: pip install 'homeport[acme]'"
        ) from None
    folder = settings.home / "acme"
    orders = Orders(settings.acme_directory, settings.acme_email, folder)
    return AcmeCertificates(folder, orders, clock, is_served=is_served)


async def serve(
    settings: Settings,
    listening: socket.socket | None = None,
    *,
    wall_clock: WallClock | None = None,
) -> None:
    """Run a server until SIGTERM or SIGINT, on ``listening`` if its starter listens already.

    ``wall_clock`` is what schedules go by: the machine's, but for tests.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = Server(settings, listening, wall_clock=wall_clock)
    try:
        await server.start()
        await stopping.wait()
    finally:
        await server.stop()


def _end() -> None:
    """End at once: the supervisor starts us again, and what was acknowledged is in the database."""
    os._exit(1)


def _inherited(fd: int) -> socket.socket:
    """The socket that ``homeport up`` left open under ``fd``; our own children do not get it."""
    listening = socket.socket(fileno=fd)
    listening.set_inheritable(False)
    return listening


@contextlib.contextmanager
def _only_one(home: Path):
    """Hold the home's server lock: two servers on one database would both dispatch its work."""
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "server.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise click.ClickException(f"a server already runs on the home {home}") from None
        yield


@click.group()
def main() -> None:
    """The Homeport server process; `homeport up` starts it."""


@main.command("serve")
@click.option("--home", type=click.Path(path_type=Path), default=None)
@click.option("--host", default=None)
@click.option("--port", type=int, default=None)
@click.option("--fd", type=int, default=None, help="An open socket that listens already.")
def serve_command(home: Path | None, host: str | None, port: int | None, fd: int | None) -> None:
    """Serve clients and nodes until stopped."""
    try:
        settings = load(home, host=host, port=port)
        configure_logging(settings.log_level, settings.log_format)
        raise_limit()
        with _only_one(settings.home):
            uvloop.run(serve(settings, _inherited(fd) if fd is not None else None))
    except HomeportError as error:
        raise click.ClickException(error.message) from None


def run(arguments: Sequence[str] | None = None) -> None:
    main(args=list(arguments) if arguments is not None else None)


if __name__ == "__main__":
    run()
