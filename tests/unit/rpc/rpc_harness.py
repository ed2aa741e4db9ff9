"""What the tests of the edge stand on: an edge of real parts, and raw calls to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from google.protobuf.message import Message
from modal.client import _Client
from modal_proto import api_pb2

from homeport.environments.rpc import EnvironmentsRpc
from homeport.environments.service import EnvironmentService
from homeport.kernel.clock import SystemClock
from homeport.kernel.signing import Signer
from homeport.rpc.auth import Authenticator
from homeport.rpc.registry import Registry
from homeport.storage.database import Database, metadata
from homeport.storage.operations import OperationLog
from homeport.transport.dispatch import IncomingCall
from homeport.transport.grpc_server import GrpcServer
from homeport.workspace.credentials import Credentials
from homeport.workspace.flows import TokenFlows
from homeport.workspace.rpc import WorkspaceRpc
from homeport.workspace.service import WorkspaceService
from homeport.workspace.tokens import Tokens

SERVICE = "/modal.client.ModalClient/"


class FakeClock:
    """Time that tests move."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.time = start

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class AnyToken:
    """Knows every token but those with the secret ``wrong``."""

    def verify(self, token_id: str, secret: str) -> bool:
        return secret != "wrong"


def call(method: str, key: str = "", **metadata: str) -> IncomingCall:
    """An RPC as a client of 1.6.4 with a token would send it; ``metadata`` replaces values."""
    values = {
        "x-modal-client-version": "1.6.4",
        "x-modal-client-type": "1",
        "x-modal-token-id": "ak-1",
        "x-modal-token-secret": "as-1",
        ":authority": "here:7460",
    }
    if key:
        values["x-idempotency-key"] = key
    values.update({name.replace("_", "-"): value for name, value in metadata.items()})
    return IncomingCall(SERVICE + method, {k: v for k, v in values.items() if v}, None)


def registry(*handlers: object, **options: object) -> Registry:
    """A registry of ``handlers`` that takes any token."""
    return Registry(handlers, authenticator=Authenticator(AnyToken()), **options)  # type: ignore[arg-type]


def body(message: Message | None = None) -> bytes:
    return b"" if message is None else message.SerializeToString()


class Edge:
    """A listening edge with a database of its own."""

    def __init__(self, url: str, credentials: Credentials, tokens: Tokens, edge: Registry) -> None:
        self.url = url
        self.credentials = credentials
        self.tokens = tokens
        self.registry = edge

    @asynccontextmanager
    async def client(
        self,
        *,
        token: tuple[str, str] | None = None,
        version: str = "1.6.4",
        kind: int = api_pb2.CLIENT_TYPE_CLIENT,
    ) -> AsyncIterator[_Client]:
        """The official client, with the installation's token unless another is given."""
        pair = token or (self.credentials.token_id, self.credentials.token_secret)
        async with _Client(self.url, kind, pair, version) as client:
            yield client


async def _follow(*_environments: object) -> None:
    """A feature that keeps nothing in environments."""


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[Database]:
    """An empty database in ``folder``, or the one an earlier use left there."""
    opened = Database.sqlite(folder / "homeport.db")
    await opened.start()
    await opened.write(metadata.create_all)
    try:
        yield opened
    finally:
        await opened.stop()


@asynccontextmanager
async def edge(home: Path, *, handlers: Sequence[object] = ()) -> AsyncIterator[Edge]:
    """An edge with environments, workspace and ``handlers``, on a free port."""
    clock = SystemClock()
    async with database(home) as opened:
        tokens = Tokens(opened, clock, OperationLog(opened, clock))
        await tokens.start()
        environments = EnvironmentService(opened, clock, OperationLog(opened, clock))
        await environments.start()
        environments.on_deleting(_follow)
        environments.on_renamed(_follow)
        workspace = WorkspaceService(opened, name="homeport")
        await workspace.start()
        signer = Signer.from_file(home / "signing.key", clock)
        dispatcher = Registry(
            [
                EnvironmentsRpc(environments, workspace),
                WorkspaceRpc(workspace, environments, tokens, signer, TokenFlows(tokens, clock)),
                *handlers,
            ],
            authenticator=Authenticator(tokens),
        )
        server = GrpcServer(dispatcher)
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(server.protocol_factory, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        credentials = await tokens.ensure_first_token(home)
        try:
            yield Edge(f"http://127.0.0.1:{port}", credentials, tokens, dispatcher)
        finally:
            listener.close()
            await server.stop(grace_s=1.0)
            await dispatcher.stop()
