"""The RPCs of ``modal.task_command_router.TaskCommandRouter``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import structlog
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from modal_proto import api_pb2
from modal_proto import task_command_router_pb2 as pb

from homeport.kernel.domains import pattern
from homeport.kernel.errors import (
    ConflictError,
    HomeportError,
    InvalidError,
    NotFoundError,
    UnimplementedError,
)
from homeport.kernel.networks import network
from homeport.kernel.numbers import wait_s
from homeport.link.messages import (
    STATUS_FAILURE,
    STATUS_INIT_FAILURE,
    STATUS_OUT_OF_MEMORY,
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    TaskExited,
)
from homeport.node.router.execution import Command, Execution
from homeport.node.router.executions import Executions
from homeport.node.router.output import GoneError
from homeport.node.runtime.port import Egress
from homeport.node.sandbox import Sandbox
from homeport.node.sidecars import MAIN, Sidecar, Sidecars, check_memory
from homeport.transport import dispatch
from homeport.transport.dispatch import IncomingCall, StatusError
from homeport.transport.statuses import STATUS_OF_CODE

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PREFIX: Final = "/modal.task_command_router.TaskCommandRouter/"
_TERMINAL: Final = (24, 80)
_CONTAINER_WAIT_S: Final = 60.0
_KILLED: Final = 137
_SNAPSHOT_S: Final = 30 * 86400.0
_UPLOADS: Final = frozenset({PREFIX + "TaskExecStdinWriteStream"})
_SERVICE: Any = pb.DESCRIPTOR.services_by_name["TaskCommandRouter"]
_STREAMS: Final[dict[str, bool]] = {
    PREFIX + method.name: bool(method.server_streaming) for method in _SERVICE.methods
}
_REQUESTS: Final[dict[str, type[Message]]] = {
    PREFIX + method.name: GetMessageClass(method.input_type) for method in _SERVICE.methods
}

Authorize = Callable[[IncomingCall, str], None]
"""Raises ``UnauthenticatedError`` unless the caller may use that container."""


class Server(Protocol):
    """What the router asks of the server."""

    async def arrival(self, task_id: str) -> None:
        """Until a container that the server has sent here is known. Raises ``HomeportError``."""
        ...

    async def env(self, task_id: str, secret_ids: list[str]) -> Mapping[str, str]:
        """The variables of these secrets; later ones override. Raises ``HomeportError``."""
        ...

    async def create_sidecar(self, task_id: str, request: bytes) -> bytes:
        """The answer to ``TaskContainerCreate``. Raises ``HomeportError``."""
        ...

    async def image_layers(self, task_id: str, image_id: str) -> list[str]:
        """The keys of an image's layers, lowest first. Raises ``HomeportError``."""
        ...


class Snapshots(Protocol):
    """Makes a sandbox's files an image."""

    async def take_named(self, sandbox: Sandbox, snapshot_id: str, ttl_s: float) -> str:
        """The image's id; the same for the same ``snapshot_id``. Raises ``HomeportError``."""
        ...

    async def take_memory_named(self, sandbox: Sandbox, key: str) -> str:
        """A memory snapshot's id; the same for the same ``key``. The sandbox ends."""
        ...

    async def take_directory(
        self, sandbox: Sandbox, path: str, snapshot_id: str, ttl_s: float
    ) -> str:
        """The same of one directory."""
        ...


class RouterRpc:
    """Answers the router's RPCs; a ``Dispatcher`` and its ``Uploads``."""

    def __init__(
        self,
        executions: Executions,
        server: Server,
        snapshots: Snapshots,
        sidecars: Sidecars,
        authorize: Authorize,
    ) -> None:
        self._sidecars = sidecars
        self._executions = executions
        self._server = server
        self._snapshots = snapshots
        self._authorize = authorize
        self._unary: dict[str, Callable[[Any, IncomingCall], Awaitable[Message]]] = {
            PREFIX + name: getattr(self, name)
            for name in (
                "SandboxStdinWriteV2",
                "SandboxWaitUntilReady",
                "TaskExecStart",
                "TaskExecWait",
                "TaskExecPoll",
                "TaskExecStdinWrite",
                "TaskExecStdinStatus",
                "TaskSnapshotFilesystem",
                "TaskSnapshotDirectory",
                "TaskSnapshotMemory",
                "TaskMountDirectory",
                "TaskUnmountDirectory",
                "TaskReloadVolumes",
                "TaskContainerCreate",
                "TaskContainerGet",
                "TaskContainerList",
                "TaskContainerTerminate",
                "TaskContainerWait",
                "TaskSetNetworkAccess",
            )
        }
        self._streams: dict[str, Callable[[Any], AsyncIterator[Message]]] = {
            PREFIX + "TaskExecStdioRead": self.TaskExecStdioRead,
            PREFIX + "SandboxStdioReadV2": self.SandboxStdioReadV2,
        }

    # ── Dispatcher, Uploads ───────────────────────────────────────────────────────────────────

    def is_stream(self, path: str) -> bool | None:
        return _STREAMS.get(path)

    def takes(self, path: str) -> bool:
        return path in _UPLOADS

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        with _Told(call):
            request = await self._admit(call, body)
            method = self._unary.get(call.path)
            if method is None:
                raise _missing(call.path)
            return (await method(request, call)).SerializeToString()
        raise AssertionError

    async def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        with _Told(call):
            request = await self._admit(call, body)
            method = self._streams.get(call.path)
            if method is None:
                raise _missing(call.path)
            async for message in method(request):
                yield message.SerializeToString()

    async def upload(self, call: IncomingCall, messages: AsyncIterator[bytes]) -> bytes:
        with _Told(call):
            return (await self.TaskExecStdinWriteStream(call, messages)).SerializeToString()
        raise AssertionError

    async def _admit(self, call: IncomingCall, body: bytes) -> Any:
        kind = _REQUESTS.get(call.path)
        if kind is None:
            raise _missing(call.path)
        try:
            request: Any = kind.FromString(body)
        except DecodeError:
            raise InvalidError(f"the request of {_name(call.path)} is not its message") from None
        self._authorize(call, request.task_id)
        if not self._executions.knows(request.task_id):
            # A client may be faster than the link, which may have been lost for a moment.
            await self._server.arrival(request.task_id)
        return request

    # ── programs ──────────────────────────────────────────────────────────────────────────────

    async def TaskExecStart(
        self, request: pb.TaskExecStartRequest, _call: IncomingCall
    ) -> pb.TaskExecStartResponse:
        task_id = request.task_id
        if request.container_id not in ("", MAIN):
            task_id = self._sidecar(task_id, request.container_id).task_id
        await self._executions.start(task_id, request.exec_id, await self._command(request))
        return pb.TaskExecStartResponse()

    async def _command(self, request: pb.TaskExecStartRequest) -> Command:
        if request.workdir and not request.workdir.startswith("/"):
            raise InvalidError(f"the working directory {request.workdir!r} is not absolute")
        if any("\0" in word for word in request.command_args):
            raise InvalidError("a command cannot contain a NUL character")
        terminal = None
        env: dict[str, str] = {}
        if request.HasField("pty_info") and request.pty_info.enabled:
            terminal, env = _terminal(request.pty_info)
        env.update(await self._env(request))
        return Command(
            words=tuple(request.command_args),
            env=env,
            workdir=request.workdir,
            timeout_s=float(request.timeout_secs),
            terminal=terminal,
            keep_stdout=request.stdout_config != pb.TASK_EXEC_STDOUT_CONFIG_DEVNULL,
            keep_stderr=request.stderr_config == pb.TASK_EXEC_STDERR_CONFIG_PIPE,
            merge_stderr=request.stderr_config == pb.TASK_EXEC_STDERR_CONFIG_STDOUT,
        )

    async def _env(self, request: pb.TaskExecStartRequest) -> dict[str, str]:
        """What the request adds to the environment, in its order."""
        named = [item.secret_id for item in request.secret_sources if item.secret_id]
        named = named or list(request.secret_ids)
        env: dict[str, str] = {}
        if not request.secret_sources:
            if named:
                env.update(await self._server.env(request.task_id, named))
            return {**env, **request.env}
        for source in request.secret_sources:
            if source.WhichOneof("source") == "secret_id":
                env.update(await self._server.env(request.task_id, [source.secret_id]))
            else:
                env.update(source.env.contents)
        return env

    async def TaskExecStdioRead(
        self, request: pb.TaskExecStdioReadRequest
    ) -> AsyncIterator[pb.TaskExecStdioReadResponse]:
        execution = await self._execution(request.task_id, request.exec_id)
        is_error = request.file_descriptor == pb.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
        output = execution.stderr if is_error else execution.stdout
        if request.offset > output.size and output.ended:
            raise InvalidError(f"the output ended at byte {output.size}, before {request.offset}")
        try:
            async for data in output.read(request.offset):
                yield pb.TaskExecStdioReadResponse(data=data)
        except GoneError as error:
            raise NotFoundError(str(error)) from None

    async def TaskExecWait(
        self, request: pb.TaskExecWaitRequest, call: IncomingCall
    ) -> pb.TaskExecWaitResponse:
        call.interruptible = True
        execution = await self._execution(request.task_id, request.exec_id)
        code = await execution.wait_read()
        if code < 0:
            return pb.TaskExecWaitResponse(signal=-code)
        return pb.TaskExecWaitResponse(code=code)

    async def TaskExecPoll(
        self, request: pb.TaskExecPollRequest, _call: IncomingCall
    ) -> pb.TaskExecPollResponse:
        code = (await self._execution(request.task_id, request.exec_id)).returncode
        if code is None:
            return pb.TaskExecPollResponse()
        if code < 0:
            return pb.TaskExecPollResponse(signal=-code)
        return pb.TaskExecPollResponse(code=code)

    # ── standard input ────────────────────────────────────────────────────────────────────────

    async def TaskExecStdinWrite(
        self, request: pb.TaskExecStdinWriteRequest, _call: IncomingCall
    ) -> pb.TaskExecStdinWriteResponse:
        execution = await self._execution(request.task_id, request.exec_id)
        await _write(execution, request.offset, request.data, request.eof)
        return pb.TaskExecStdinWriteResponse()

    async def TaskExecStdinStatus(
        self, request: pb.TaskExecStdinStatusRequest, _call: IncomingCall
    ) -> pb.TaskExecStdinStatusResponse:
        stdin = (await self._execution(request.task_id, request.exec_id)).stdin
        stdin.take_over()
        return pb.TaskExecStdinStatusResponse(num_bytes_written=stdin.accepted, closed=stdin.closed)

    async def TaskExecStdinWriteStream(
        self, call: IncomingCall, messages: AsyncIterator[bytes]
    ) -> pb.TaskExecStdinWriteStreamResponse:
        first = pb.TaskExecStdinWriteStreamRequest.FromString(await anext(messages, b""))
        if first.WhichOneof("payload") != "start":
            raise InvalidError("the first message of a stream of writes says where it begins")
        start = first.start
        self._authorize(call, start.task_id)
        execution = await self._execution(start.task_id, start.exec_id)
        stdin = execution.stdin
        with stdin.writing():
            if start.offset != stdin.accepted:
                raise ConflictError(
                    f"standard input has {stdin.accepted} bytes, not {start.offset}"
                )
            async for body in messages:
                message = pb.TaskExecStdinWriteStreamRequest.FromString(body)
                kind = message.WhichOneof("payload")
                if kind == "data":
                    await _write(execution, stdin.accepted, message.data, False)
                elif kind == "end":
                    await _write(execution, stdin.accepted, b"", True)
        return pb.TaskExecStdinWriteStreamResponse()

    async def TaskSnapshotMemory(
        self, request: pb.TaskSnapshotMemoryRequest, _call: IncomingCall
    ) -> pb.TaskSnapshotMemoryResponse:
        sandbox = self._sandbox(request.task_id)
        if not sandbox.is_over:
            await sandbox.started()
        check_memory(self._sidecars, request.task_id)
        key = request.idempotency_key
        snapshot_id = await self._snapshots.take_memory_named(sandbox, key)
        return pb.TaskSnapshotMemoryResponse(snapshot_id=snapshot_id)

    # ── the sandbox's own program ─────────────────────────────────────────────────────────────

    async def SandboxStdioReadV2(
        self, request: pb.SandboxStdioReadV2Request
    ) -> AsyncIterator[pb.SandboxStdioReadV2Response]:
        is_error = request.file_descriptor == pb.SANDBOX_STDIO_FILE_DESCRIPTOR_STDERR
        stdio = self._sandbox(request.task_id).stdio
        async for start, data in stdio.read(2 if is_error else 1, request.offset):
            yield pb.SandboxStdioReadV2Response(data=data, starting_offset=start)

    async def SandboxStdinWriteV2(
        self, request: pb.SandboxStdinWriteV2Request, _call: IncomingCall
    ) -> pb.SandboxStdinWriteV2Response:
        sandbox = self._sandbox(request.task_id)
        await sandbox.write_stdin(request.offset, request.data, eof=request.eof)
        return pb.SandboxStdinWriteV2Response()

    async def SandboxWaitUntilReady(
        self, request: pb.SandboxWaitUntilReadyTcrRequest, call: IncomingCall
    ) -> pb.SandboxWaitUntilReadyTcrResponse:
        call.interruptible = True
        ready_at = await self._sandbox(request.task_id).until_ready(wait_s(request.timeout))
        return pb.SandboxWaitUntilReadyTcrResponse(ready_at=ready_at)

    # ── files ─────────────────────────────────────────────────────────────────────────────────

    async def TaskSnapshotFilesystem(
        self, request: pb.TaskSnapshotFilesystemRequest, _call: IncomingCall
    ) -> pb.TaskSnapshotFilesystemResponse:
        sandbox = self._part(request.task_id, request.container_id)
        await sandbox.started()
        ttl_s = snapshot_ttl_s(request.ttl_seconds)
        image_id = await self._snapshots.take_named(sandbox, request.snapshot_id, ttl_s)
        return pb.TaskSnapshotFilesystemResponse(image_id=image_id)

    async def TaskSnapshotDirectory(
        self, request: pb.TaskSnapshotDirectoryRequest, _call: IncomingCall
    ) -> pb.TaskSnapshotDirectoryResponse:
        _unencrypted(request)
        sandbox = self._part(request.task_id, request.container_id)
        await sandbox.started()
        ttl_s = snapshot_ttl_s(request.ttl_seconds)
        image_id = await self._snapshots.take_directory(
            sandbox, _path(request.path), request.snapshot_id, ttl_s
        )
        return pb.TaskSnapshotDirectoryResponse(image_id=image_id)

    async def TaskMountDirectory(
        self, request: pb.TaskMountDirectoryRequest, _call: IncomingCall
    ) -> Empty:
        _unencrypted(request)
        sandbox = self._part(request.task_id, request.container_id)
        container = await sandbox.started()
        image_id = request.image_id
        layers: list[str] = []
        if image_id:
            layers = await self._server.image_layers(request.task_id, image_id)
        with sandbox.active():
            await sandbox.images.mount(container, _path(request.path), image_id, layers)
        return Empty()

    async def TaskUnmountDirectory(
        self, request: pb.TaskUnmountDirectoryRequest, _call: IncomingCall
    ) -> Empty:
        sandbox = self._part(request.task_id, request.container_id)
        container = await sandbox.started()
        with sandbox.active():
            await sandbox.images.unmount(container, _path(request.path))
        return Empty()

    async def TaskReloadVolumes(
        self, request: pb.TaskReloadVolumesRequest, _call: IncomingCall
    ) -> pb.TaskReloadVolumesResponse:
        sandbox = self._part(request.task_id, request.container_id)
        await sandbox.started()
        await sandbox.reload_volumes()
        return pb.TaskReloadVolumesResponse()

    async def TaskSetNetworkAccess(
        self, request: pb.TaskSetNetworkAccessRequest, _call: IncomingCall
    ) -> pb.TaskSetNetworkAccessResponse:
        sandbox = self._sandbox(request.task_id)
        await sandbox.started()
        await sandbox.set_network(egress(request.network_access))
        return pb.TaskSetNetworkAccessResponse()

    # ── sidecars ──────────────────────────────────────────────────────────────────────────────

    async def TaskContainerCreate(
        self, request: pb.TaskContainerCreateRequest, _call: IncomingCall
    ) -> pb.TaskContainerCreateResponse:
        self._sandbox(request.task_id)
        body = await self._server.create_sidecar(request.task_id, request.SerializeToString())
        return pb.TaskContainerCreateResponse.FromString(body)

    async def TaskContainerGet(
        self, request: pb.TaskContainerGetRequest, _call: IncomingCall
    ) -> pb.TaskContainerGetResponse:
        self._sandbox(request.task_id)
        found = self._sidecars.named(
            request.task_id, request.container_name, ended_too=request.include_terminated
        )
        return pb.TaskContainerGetResponse(container=_container_info(found))

    async def TaskContainerList(
        self, request: pb.TaskContainerListRequest, _call: IncomingCall
    ) -> pb.TaskContainerListResponse:
        self._sandbox(request.task_id)
        found = self._sidecars.of(request.task_id, ended_too=request.include_terminated)
        return pb.TaskContainerListResponse(containers=[_container_info(one) for one in found])

    async def TaskContainerTerminate(
        self, request: pb.TaskContainerTerminateRequest, _call: IncomingCall
    ) -> pb.TaskContainerTerminateResponse:
        self._sidecar(request.task_id, request.container_id).terminate()
        return pb.TaskContainerTerminateResponse()

    async def TaskContainerWait(
        self, request: pb.TaskContainerWaitRequest, call: IncomingCall
    ) -> pb.TaskContainerWaitResponse:
        call.interruptible = True
        sidecar = self._sidecar(request.task_id, request.container_id)
        await sidecar.until_exit(wait_s(request.timeout, _CONTAINER_WAIT_S))
        response = pb.TaskContainerWaitResponse()
        if sidecar.exited is not None:
            response.result.CopyFrom(_result(sidecar, sidecar.exited))
        return response

    def _sidecar(self, task_id: str, container_id: str) -> Sidecar:
        found = self._sidecars.find(container_id)
        if found is None or found.account_id != task_id:
            raise NotFoundError(f"the sandbox has no sidecar container {container_id!r}")
        return found

    def _part(self, task_id: str, container_id: str) -> Sandbox:
        """The sandbox's own container, or a sidecar."""
        if container_id in ("", MAIN):
            return self._sandbox(task_id)
        return self._sidecar(task_id, container_id)

    async def _execution(self, task_id: str, execution_id: str) -> Execution:
        """A program: only its start says in which of the sandbox's containers it is."""
        for sidecar in self._sidecars.of(task_id, ended_too=True):
            if self._executions.has(sidecar.task_id, execution_id):
                return await self._executions.get(sidecar.task_id, execution_id)
        return await self._executions.get(task_id, execution_id)

    def _sandbox(self, task_id: str) -> Sandbox:
        task = self._executions.find(task_id)
        if task is None:
            raise NotFoundError(f"the sandbox of {task_id} is not here (any more)")
        if not isinstance(task, Sandbox) or isinstance(task, Sidecar):
            raise InvalidError(f"{task_id} is a function's container, not a sandbox's")
        return task


async def _write(execution: Execution, offset: int, data: bytes, eof: bool) -> None:
    try:
        await execution.stdin.write(offset, data, eof)
    except ConflictError:
        if execution.stdin.broken:
            await execution.about_to_end()
        raise


def _terminal(info: api_pb2.PTYInfo) -> tuple[tuple[int, int], dict[str, str]]:
    """Its size, and the variables that tell programs about it."""
    told = {
        "TERM": info.env_term,
        "COLORTERM": info.env_colorterm,
        "TERM_PROGRAM": info.env_term_program,
    }
    size = (info.winsz_rows or _TERMINAL[0], info.winsz_cols or _TERMINAL[1])
    env = {name: value for name, value in told.items() if value}
    return size, {"TERM": "xterm-256color", **env}


def snapshot_ttl_s(asked: int) -> float:
    """How long a snapshot is wanted, 0 = for ever. Raises ``InvalidError``."""
    if asked == -1:
        return 0.0
    if asked < 0:
        raise InvalidError(f"a snapshot is kept for {asked} seconds? Give more than 0, or -1")
    return float(asked) or _SNAPSHOT_S  # clients before 1.5 do not say


def egress(access: api_pb2.NetworkAccess) -> Egress | None:
    """What may be reached; ``None`` = everything. Raises ``InvalidError``."""
    if access.network_access_type == api_pb2.NetworkAccess.BLOCKED:
        return Egress()
    if access.network_access_type != api_pb2.NetworkAccess.ALLOWLIST:
        return None
    return Egress(
        tuple(network(text) for text in access.allowed_cidrs),
        tuple(pattern(text) for text in access.allowed_domains),
    )


def _container_info(sidecar: Sidecar) -> pb.TaskContainerInfo:
    info = pb.TaskContainerInfo(
        container_id=sidecar.task_id,
        container_name=sidecar.name,
        status="running" if sidecar.exited is None else "terminated",
    )
    if sidecar.exited is not None:
        info.result.CopyFrom(_result(sidecar, sidecar.exited))
    return info


def _result(sidecar: Sidecar, exited: TaskExited) -> api_pb2.GenericResult:
    """How it ended, as sandboxes' ends are told."""
    text = ""
    if sidecar.terminated:
        status, code = STATUS_TERMINATED, _KILLED
    elif exited.start_failed:
        status, code = STATUS_INIT_FAILURE, 1
        text = f"The sidecar container did not start: {exited.reason}"
    elif exited.oom_killed:
        status, code = STATUS_OUT_OF_MEMORY, _KILLED
        text = "Out of memory: the sidecar container used more than its limit and was killed"
    elif exited.returncode == 0:
        status, code = STATUS_SUCCESS, 0
    else:
        status = STATUS_FAILURE
        code = exited.returncode if exited.returncode > 0 else 128 - exited.returncode
    return api_pb2.GenericResult(
        status=status,  # pyright: ignore[reportArgumentType]
        exitcode=code,
        exception=text,
    )


def _path(path: bytes) -> str:
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise InvalidError("the path is not UTF-8") from None


def _unencrypted(
    request: pb.TaskSnapshotDirectoryRequest | pb.TaskMountDirectoryRequest,
) -> None:
    if request.customer_supplied_encryption_key:
        raise UnimplementedError("Homeport does not encrypt snapshots with keys of their own yet")


def _missing(path: str) -> UnimplementedError:
    return UnimplementedError(f"Homeport does not do {_name(path)} yet (see docs/coverage.md)")


def _name(path: str) -> str:
    return path.removeprefix(PREFIX)


class _Told:
    """Errors of the block as gRPC statuses."""

    def __init__(self, call: IncomingCall) -> None:
        self._call = call

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, HomeportError):
            raise StatusError(STATUS_OF_CODE[error.code], error.message) from None
        if isinstance(error, DecodeError):
            name = _name(self._call.path)
            raise StatusError(
                dispatch.INVALID_ARGUMENT, f"the request of {name} is not its message"
            ) from None
