"""The server of one container: answers its work loop here, forwards everything else.

A container sends no credentials; the socket it speaks through is its identity.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import structlog
from google.protobuf.message import DecodeError
from modal_proto import api_pb2

from homeport.kernel.errors import Code, HomeportError
from homeport.link.messages import OutputItem, Result
from homeport.node import wire
from homeport.node.tunnels import TunnelPort
from homeport.node.work import Grant
from homeport.transport.dispatch import (
    ALREADY_EXISTS,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    PERMISSION_DENIED,
    UNAVAILABLE,
    IncomingCall,
    StatusError,
    Trailers,
)
from homeport.transport.recording import Recorder

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

HEARTBEAT_MARGIN_S = 0.2
HEARTBEAT_HOLD_S = 14.9
"""The client waits 15.1 s for a heartbeat's answer and asks again 15 s after it asked."""
EMPTY = b""
DATA_PATHS = frozenset({"FunctionCallPutDataOut", "FunctionCallGetDataIn"})
"""What generators and web functions need to run; part of the work loop, bound to own inputs."""
BLOB_PATHS = frozenset({"BlobCreate", "BlobGet"})
"""How large arguments and results travel; blob ids cannot be guessed."""

_T = TypeVar("_T")


_STATUS = {
    Code.INVALID: INVALID_ARGUMENT,
    Code.NOT_FOUND: NOT_FOUND,
    Code.CONFLICT: FAILED_PRECONDITION,
    Code.ALREADY_EXISTS: ALREADY_EXISTS,
}


class ContainerPort(Protocol):
    """The container behind the socket, as its RPCs see it."""

    @property
    def task_id(self) -> str: ...

    @property
    def untrusted(self) -> bool:
        """No control-plane access."""
        ...

    async def get_inputs(self, concurrency: int) -> Grant:
        """Wait for the next input, batch, or the kill switch."""
        ...

    async def heartbeat(self, hold_s: float) -> list[str]:
        """Wait up to ``hold_s`` for inputs to cancel."""
        ...

    def put_outputs(self, items: list[OutputItem]) -> None:
        """Take outputs over; raises ``StatusError`` (RESOURCE_EXHAUSTED) when too many wait."""
        ...

    def concurrency(self, target: int, maximum: int) -> int: ...

    def init_failed(self, result: Result) -> None: ...

    def greeted(self) -> None: ...

    def checkpoint(self) -> None:
        """The program is at its memory snapshot, and goes on when it is told which task it is.

        Raises ``StatusError`` if it was not started to get there.
        """
        ...

    def stop_fetching(self) -> None: ...

    def server_ready(self) -> None: ...

    def has_volume(self, volume_id: str) -> bool:
        """Whether that volume is mounted in this container."""
        ...

    async def commit_volume(self, volume_id: str) -> None:
        """Raises ``HomeportError``."""
        ...

    async def reload_volume(self, volume_id: str) -> None:
        """Raises ``HomeportError``."""
        ...

    async def open_tunnels(self, ports: Sequence[TunnelPort], key: str) -> tuple[str, list[int]]:
        """Where the node leads to that port of the container, in these ways: host and ports.

        ``key`` tells a repeated request from another one. Raises ``HomeportError``.
        """
        ...

    def close_tunnel(self, number: int) -> bool:
        """Whether there was one."""
        ...

    def owns_call(self, call_id: str) -> bool:
        """Whether an input of that call runs in this container."""
        ...


class Upstream(Protocol):
    """The way to the server for forwarded RPCs."""

    async def unary(
        self,
        task_id: str,
        path: str,
        metadata: list[tuple[str, str]],
        body: bytes,
        timeout_s: float | None,
    ) -> tuple[bytes, Trailers]: ...

    def stream(
        self,
        task_id: str,
        path: str,
        metadata: list[tuple[str, str]],
        body: bytes,
        timeout_s: float | None,
    ) -> AsyncIterator[bytes]: ...


class ContainerDispatcher:
    """Dispatcher of one container's socket."""

    def __init__(
        self, container: ContainerPort, upstream: Upstream, recorder: Recorder | None = None
    ) -> None:
        self._container = container
        self._upstream = upstream
        self._recorder = recorder or Recorder.of_process()
        local: dict[str, Callable[[IncomingCall, bytes], Awaitable[bytes]]] = {
            "ContainerHello": self._hello,
            "ContainerHeartbeat": self._heartbeat,
            "ContainerCheckpoint": self._checkpoint,
            "ContainerServerLifecycleReady": self._server_ready,
            "ContainerStop": self._container_stop,
            "FlashContainerRegister": self._flash_register,
            "FlashContainerDeregister": self._flash_deregister,
            "FunctionGetInputs": self._get_inputs,
            "FunctionPutOutputs": self._put_outputs,
            "FunctionGetDynamicConcurrency": self._dynamic_concurrency,
            "TaskResult": self._task_result,
            "VolumeCommit": self._volume_commit,
            "VolumeReload": self._volume_reload,
            "TunnelStart": self._tunnel_start,
            "TunnelStop": self._tunnel_stop,
        }
        self._local = {wire.PREFIX + name: method for name, method in local.items()}

    # ── Dispatcher ────────────────────────────────────────────────────────────────────────────

    def is_stream(self, path: str) -> bool | None:
        """Whether ``path`` answers with a stream, by the protocol's descriptor."""
        return wire.STREAMS.get(path)

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        """Answer locally or forward. Raises ``StatusError``."""
        method = self._local.get(call.path)
        if method is None:
            return await self._forward(call, body)
        try:
            answer = await method(call, body)
        except DecodeError as error:
            raise StatusError(INVALID_ARGUMENT, f"{call.path}: not its message: {error}") from None
        if self._recorder is not None:
            name = call.path.removeprefix(wire.PREFIX)
            self._recorder.note(name, call.metadata.get("x-modal-client-version", ""))
        return answer

    async def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        """Forward a streaming RPC message by message."""
        self._authorize(call.path, body)
        async for message in self._upstream.stream(
            self._container.task_id, call.path, _metadata(call), body, call.timeout_s
        ):
            yield message

    # ── answered here ─────────────────────────────────────────────────────────────────────────

    async def _hello(self, _call: IncomingCall, _body: bytes) -> bytes:
        self._container.greeted()
        return EMPTY

    async def _heartbeat(self, call: IncomingCall, _body: bytes) -> bytes:
        call.interruptible = True
        hold_s = HEARTBEAT_HOLD_S
        if call.timeout_s is not None:
            hold_s = max(0.0, call.timeout_s - HEARTBEAT_MARGIN_S)
        ids = await self._container.heartbeat(hold_s)
        return wire.cancel_response(ids) if ids else EMPTY

    async def _get_inputs(self, call: IncomingCall, body: bytes) -> bytes:
        # Any status the client does not retry would end the container.
        call.interruptible = True
        try:
            request = api_pb2.FunctionGetInputsRequest.FromString(body)
            grant = await self._container.get_inputs(max(1, request.input_concurrency))
            if grant.is_kill_switch:
                return wire.kill_switch_response()
            return wire.grant_response(grant.items)
        except StatusError:
            raise
        except Exception as error:
            log.exception("no answer to FunctionGetInputs", task_id=self._container.task_id)
            raise StatusError(UNAVAILABLE, "the node failed to look up inputs") from error

    async def _put_outputs(self, _call: IncomingCall, body: bytes) -> bytes:
        self._container.put_outputs(wire.output_items(body))
        return EMPTY

    async def _dynamic_concurrency(self, _call: IncomingCall, body: bytes) -> bytes:
        request = api_pb2.FunctionGetDynamicConcurrencyRequest.FromString(body)
        slots = self._container.concurrency(request.target_concurrency, request.max_concurrency)
        return api_pb2.FunctionGetDynamicConcurrencyResponse(concurrency=slots).SerializeToString()

    async def _task_result(self, _call: IncomingCall, body: bytes) -> bytes:
        self._container.init_failed(wire.task_result(body))
        return EMPTY

    async def _container_stop(self, call: IncomingCall, body: bytes) -> bytes:
        request = api_pb2.ContainerStopRequest.FromString(body)
        if request.task_id not in ("", self._container.task_id):
            return await self._forward(call, body)
        self._container.stop_fetching()
        return EMPTY

    async def _server_ready(self, _call: IncomingCall, _body: bytes) -> bytes:
        self._container.server_ready()
        return EMPTY

    async def _flash_register(self, _call: IncomingCall, body: bytes) -> bytes:
        """Servers of clients before 1.6.1 say every second that they are well."""
        request = api_pb2.FlashContainerRegisterRequest.FromString(body)
        self._container.server_ready()
        url = f"https://{request.host}:{request.port}"
        return api_pb2.FlashContainerRegisterResponse(url=url).SerializeToString()

    async def _flash_deregister(self, _call: IncomingCall, _body: bytes) -> bytes:
        return EMPTY  # requests end with the container's work, which its task sees to

    async def _checkpoint(self, _call: IncomingCall, _body: bytes) -> bytes:
        self._container.checkpoint()
        return EMPTY

    async def _volume_commit(self, call: IncomingCall, body: bytes) -> bytes:
        request = api_pb2.VolumeCommitRequest.FromString(body)
        if not self._container.has_volume(request.volume_id):
            return await self._forward(call, body)
        await _answered(self._container.commit_volume(request.volume_id))
        # the container sees its own changes anyway; a reload could fail over open files
        return api_pb2.VolumeCommitResponse(skip_reload=True).SerializeToString()

    async def _volume_reload(self, call: IncomingCall, body: bytes) -> bytes:
        request = api_pb2.VolumeReloadRequest.FromString(body)
        if not self._container.has_volume(request.volume_id):
            return await self._forward(call, body)
        await _answered(self._container.reload_volume(request.volume_id))
        return EMPTY

    async def _tunnel_start(self, call: IncomingCall, body: bytes) -> bytes:
        request = api_pb2.TunnelStartRequest.FromString(body)
        if not 0 < request.port < 65536:
            raise StatusError(INVALID_ARGUMENT, f"{request.port} is not a TCP port")
        h2 = request.tunnel_type == api_pb2.TUNNEL_TYPE_H2
        ports = [TunnelPort(request.port, h2=h2)]
        if request.unencrypted:
            ports.append(TunnelPort(request.port, unencrypted=True))
        key = call.metadata.get("x-idempotency-key", "")
        host, numbers = await _answered(self._container.open_tunnels(ports, key))
        response = api_pb2.TunnelStartResponse(host=host, port=numbers[0])
        if request.unencrypted:
            response.unencrypted_host = host
            response.unencrypted_port = numbers[1]
        return response.SerializeToString()

    async def _tunnel_stop(self, _call: IncomingCall, body: bytes) -> bytes:
        request = api_pb2.TunnelStopRequest.FromString(body)
        exists = self._container.close_tunnel(request.port)
        return api_pb2.TunnelStopResponse(exists=exists).SerializeToString()

    # ── answered by the server ────────────────────────────────────────────────────────────────

    async def _forward(self, call: IncomingCall, body: bytes) -> bytes:
        self._authorize(call.path, body)
        answer, trailers = await self._upstream.unary(
            self._container.task_id, call.path, _metadata(call), body, call.timeout_s
        )
        call.trailers.extend(trailers)
        return answer

    def _authorize(self, path: str, body: bytes) -> None:
        """Refuse forwarded RPCs of an untrusted container, but for its own inputs' data."""
        if not self._container.untrusted:
            return
        name = path.removeprefix(wire.PREFIX)
        if name in BLOB_PATHS or (name in DATA_PATHS and self._is_own_call(name, body)):
            return
        raise StatusError(
            PERMISSION_DENIED,
            f"{name} is not allowed here: this function runs with restricted access "
            "(restrict_modal_access=True), which keeps its code from using the platform.",
        )

    def _is_own_call(self, name: str, body: bytes) -> bool:
        try:
            if name == "FunctionCallPutDataOut":
                call_id = api_pb2.FunctionCallPutDataRequest.FromString(body).function_call_id
            else:
                call_id = api_pb2.FunctionCallGetDataRequest.FromString(body).function_call_id
        except DecodeError:
            return False
        return self._container.owns_call(call_id)


async def _answered(work: Awaitable[_T]) -> _T:
    """``work``, with its errors as the server would say them."""
    try:
        return await work
    except HomeportError as error:
        raise StatusError(_STATUS.get(error.code, UNAVAILABLE), error.message) from None


def _metadata(call: IncomingCall) -> list[tuple[str, str]]:
    return list(call.metadata.items())
