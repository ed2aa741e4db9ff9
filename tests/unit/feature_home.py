"""The data features over a real database and a real folder, without the rest of a server."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from homeport.blobs.service import BlobService
from homeport.blobs.signing import UrlSigner
from homeport.blobs.store import BlobStore
from homeport.environments.service import EnvironmentService
from homeport.gateway.http import create_http_app
from homeport.gateway.pages import AppPage
from homeport.kernel.clock import SystemClock
from homeport.link.messages import ManifestFile
from homeport.logs.service import LogService
from homeport.logs.store import LogStore
from homeport.mounts.service import MountService
from homeport.mounts.store import MountStore
from homeport.objects.service import Objects
from homeport.objects.store import ObjectStore
from homeport.rpc.context import ClientIdentity, Context
from homeport.secrets.crypt import SecretBox
from homeport.secrets.service import SecretService
from homeport.secrets.store import SecretStore
from homeport.storage.blobs import FileStore
from homeport.storage.database import Database
from homeport.storage.operations import OperationLog
from homeport.volumes.blocks import Blocks
from homeport.volumes.model import VOLUME
from homeport.volumes.service import VolumeService
from homeport.volumes.store import VolumeStore, erase

NODE_TOKEN = "node-token"


class SettableClock(SystemClock):
    """The machine's clock, moved by ``offset`` seconds."""

    offset = 0.0

    def now(self) -> float:
        return super().now() + self.offset


@dataclass
class CountedMounts:
    """Global mounts of one file each; counts how often it was asked."""

    files: FileStore
    asked: list[str] = field(default_factory=list[str])
    failing: bool = False

    async def client_mount(self, version: str) -> list[ManifestFile]:
        return await self._make(f"/pkg/modal/{version}.py")

    async def deps_mount(self, builder_version: str, python_minor: str) -> list[ManifestFile]:
        return await self._make(f"/__modal/deps/{builder_version}-{python_minor}.py")

    async def _make(self, name: str) -> list[ManifestFile]:
        self.asked.append(name)
        await asyncio.sleep(0)
        if self.failing:
            raise RuntimeError("no wheel today")
        data = name.encode()
        return [ManifestFile(name, await self.files.put_bytes(data), 0o644, len(data))]


@dataclass
class NoPages:
    """Pages that a test puts in."""

    known: dict[str, AppPage] = field(default_factory=dict[str, AppPage])

    async def page(self, app_id: str, *, log_lines: int) -> AppPage | None:
        return self.known.get(app_id)


@dataclass
class Home:
    """Everything wired as the server does it."""

    clock: SettableClock
    database: Database
    files: FileStore
    blobs: BlobService
    global_mounts: CountedMounts
    mounts: MountService
    logs: LogService
    secrets: SecretService
    volume_objects: Objects
    volumes: VolumeService
    environments: EnvironmentService
    pages: NoPages
    url: str = ""

    def context(self, method: str = "", version: str = "1.6.4", key: str = "") -> Context:
        return Context(
            method, "r-1", ClientIdentity("ak-1"), version, 1, self.url, idempotency_key=key
        )


@asynccontextmanager
async def open_home(path: Path) -> AsyncIterator[Home]:
    clock = SettableClock()
    database = Database.sqlite(path / "homeport.db")
    files = FileStore(path / "blobs")
    files.prepare()
    await database.start()
    operations = OperationLog(database, clock)
    await operations.start()
    environments = EnvironmentService(database, clock, operations)
    await environments.start()
    blobs = BlobService(BlobStore(database), files, UrlSigner(b"k" * 32), clock=clock)
    await blobs.start()
    global_mounts = CountedMounts(files)
    mounts = MountService(MountStore(database), files, blobs, global_mounts, clock=clock)
    logs = LogService(LogStore(database), clock=clock)
    await logs.start()
    secrets = SecretService(SecretStore(database), SecretBox(b"s" * 32), operations, clock=clock)
    volume_objects = Objects(
        VOLUME,
        ObjectStore(database),
        clock,
        erase=erase,
        operations=operations,
        ephemeral_timeout_s=900.0,
    )
    await volume_objects.start()
    volumes = VolumeService(
        volume_objects,
        VolumeStore(database),
        Blocks(files, b"k" * 32, clock),
        files,
        blobs,
        clock=clock,
    )
    home = Home(
        clock,
        database,
        files,
        blobs,
        global_mounts,
        mounts,
        logs,
        secrets,
        volume_objects,
        volumes,
        environments,
        NoPages(),
        url="http://127.0.0.1:1",
    )
    try:
        yield home
    finally:
        await volume_objects.stop()
        await database.stop()
        files.close()


@asynccontextmanager
async def serve(home: Home) -> AsyncIterator[str]:
    """The gateway on a free port, fed connection by connection as the listener does it."""
    app = create_http_app(
        home.blobs,
        home.mounts,
        home.files,
        home.volumes,
        verify_node=lambda token: token == NODE_TOKEN,
        pages=home.pages,
        health=lambda: {"version": "test"},
    )
    runner = web.AppRunner(app)
    await runner.setup()
    protocol_factory = runner.server
    assert protocol_factory is not None
    server = await asyncio.get_running_loop().create_server(protocol_factory, "127.0.0.1", 0)
    home.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield home.url
    finally:
        server.close()
        await runner.cleanup()


def run(path: Path, scenario: Callable[[Home], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_home(path) as home:
            await scenario(home)

    asyncio.run(main())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
