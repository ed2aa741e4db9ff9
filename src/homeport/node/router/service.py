"""The command router of a node: wiring, start, stop."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from homeport.kernel.clock import SystemClock
from homeport.kernel.errors import Code, error_of
from homeport.link.messages import (
    ARRIVAL_PATH,
    IMAGE_PATH,
    SECRETS_PATH,
    SIDECAR_PATH,
    RouterCancel,
    RouterRequest,
    Welcome,
)
from homeport.node.link import NodeLink
from homeport.node.router.access import Access
from homeport.node.router.execution import Command
from homeport.node.router.executions import Executions, Find, RoutedTask
from homeport.node.router.files import PATH, FileTools
from homeport.node.router.listener import RouterListener
from homeport.node.router.routed import Routed
from homeport.node.router.rpc import RouterRpc, Snapshots
from homeport.node.sidecars import Sidecars
from homeport.transport.dispatch import IncomingCall, StatusError
from homeport.transport.grpc_server import GrpcServer
from homeport.transport.statuses import STATUS_OF_CODE

_MIB: Final = 1024 * 1024
MESSAGE_BYTES_MAX: Final = 64 * _MIB
"""Largest request; clients write at most 16 MiB at a time."""
ASK_TIMEOUT_S: Final = 30.0
_CODES: Final = {status: code for code, status in STATUS_OF_CODE.items()}
IMAGE_TIMEOUT_S: Final = 600.0
"""Layers that were deleted are built again first."""


class CommandRouter:
    """Serves clients that run programs in this node's containers."""

    def __init__(
        self,
        find: Find,
        link: NodeLink,
        folder: Path,
        snapshots: Snapshots,
        sidecars: Sidecars,
        *,
        listen: str,
        port: int,
        host: str,
    ) -> None:
        self._link = link
        self._access = Access(SystemClock())
        self._files = FileTools()
        self._executions = Executions(find, folder, {PATH: self._files.start})
        rpc = RouterRpc(self._executions, self, snapshots, sidecars, self._access.authorize)
        trusted = RouterRpc(self._executions, self, snapshots, sidecars, _trusted)
        self._routed = Routed(trusted, link)
        self._grpc = GrpcServer(rpc, uploads=rpc, message_bytes_max=MESSAGE_BYTES_MAX)
        self._listener = RouterListener(listen, port, self._grpc.protocol_factory)
        self._note = folder.with_name("router-port")
        self.host = host

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listener.port

    async def start(self) -> None:
        """Raises ``ConflictError`` or ``InvalidError`` about the address.

        The port is the one it had before: clients stay with the address they were given, and try
        for minutes to reach a node that listens elsewhere, instead of being told that their
        sandbox is gone.
        """
        await self._listener.start(_noted(self._note))
        self._note.parent.mkdir(parents=True, exist_ok=True)
        self._note.write_text(str(self.port))

    async def stop(self) -> None:
        """End all connections; to be called when the containers have ended."""
        await self._listener.stop()
        await self._grpc.stop(0.0)
        await self._routed.stop()
        self._files.close()
        await self._executions.stop()

    def welcomed(self, welcome: Welcome) -> None:
        """What the server wants the router to work with."""
        self._access.use(welcome.router_key)

    def handle(self, message: RouterRequest | RouterCancel) -> None:
        """What the server has for the router."""
        match message:
            case RouterRequest():
                self._routed.begin(message)
            case RouterCancel():
                self._routed.cancel(message.rpc_id)

    def certify(self, certificate: str, key: str) -> None:
        """Show that certificate from now on."""
        if certificate:
            self._listener.certify(certificate, key)

    def serve(self, listening: socket.socket) -> Callable[[], None]:
        """Serve on a listening socket as well, until the result is called."""
        return self._listener.serve(listening)

    async def execute(self, task: RoutedTask, command: list[str]) -> int:
        """Run ``command`` in a running container; its exit code. Raises ``HomeportError``."""
        words = Command(tuple(command), keep_stdout=False, keep_stderr=False)
        execution_id = uuid.uuid4().hex
        await self._executions.start(task.task_id, execution_id, words)
        execution = await self._executions.get(task.task_id, execution_id)
        try:
            return await execution.wait()
        finally:
            execution.kill()
            self._executions.drop(task.task_id, execution_id)

    async def env(self, task_id: str, secret_ids: list[str]) -> Mapping[str, str]:
        """The variables of secrets, asked of the server. Raises ``HomeportError``."""
        body = msgspec.msgpack.encode(secret_ids)
        return msgspec.msgpack.decode(
            await self._ask(task_id, SECRETS_PATH, body), type=dict[str, str]
        )

    async def arrival(self, task_id: str) -> None:
        """Until what the server said before it was asked is here. Raises ``HomeportError``."""
        await self._ask(task_id, ARRIVAL_PATH, b"")

    async def image_layers(self, task_id: str, image_id: str) -> list[str]:
        """The layers of an image, asked of the server, which builds them if it must.

        Raises ``HomeportError``.
        """
        answer = await self._ask(task_id, IMAGE_PATH, image_id.encode(), IMAGE_TIMEOUT_S)
        return msgspec.msgpack.decode(answer, type=list[str])

    async def create_sidecar(self, task_id: str, request: bytes) -> bytes:
        """The server's answer to a ``TaskContainerCreate``. Raises ``HomeportError``."""
        return await self._ask(task_id, SIDECAR_PATH, request, IMAGE_TIMEOUT_S)

    async def _ask(
        self, task_id: str, path: str, body: bytes, timeout_s: float = ASK_TIMEOUT_S
    ) -> bytes:
        try:
            answer, _ = await self._link.unary(task_id, path, [], body, timeout_s)
        except StatusError as error:
            code = _CODES.get(error.status, Code.UNAVAILABLE)
            raise error_of(code, error.message) from None
        return answer


def _noted(path: Path) -> int:
    """The port in that file; 0 without one."""
    try:
        port = int(path.read_text())
    except (OSError, ValueError):
        return 0
    return port if 0 < port < 65536 else 0


def _trusted(_call: IncomingCall, _task_id: str) -> None:
    """The server has looked at who asks."""
