"""RPC handlers of the memory snapshots of sandboxes."""

from __future__ import annotations

from typing import Final

from modal_proto import api_pb2

from homeport.kernel.errors import UnimplementedError
from homeport.kernel.numbers import wait_s
from homeport.nodes.routers import Routers
from homeport.rpc.context import Context
from homeport.sandboxes import wire
from homeport.sandboxes.memory import MemorySnapshots
from homeport.sandboxes.model import SandboxRecord
from homeport.sandboxes.rpc import is_repeat, say_where

_SNAPSHOT: Final = "sn"
_POLL_S: Final = 60.0
"""A wait is answered within it, whatever the client asks."""
_Override = api_pb2.SandboxRestoreRequest


class MemorySnapshotRpc:
    """``SandboxSnapshot*`` of memory and ``SandboxRestore*``."""

    def __init__(self, service: MemorySnapshots, routers: Routers) -> None:
        self._service = service
        self._routers = routers

    async def SandboxSnapshot(
        self, request: api_pb2.SandboxSnapshotRequest, ctx: Context
    ) -> api_pb2.SandboxSnapshotResponse:
        snapshot_id = ctx.new_id(_SNAPSHOT)
        await self._service.begin(request.sandbox_id, snapshot_id)
        return api_pb2.SandboxSnapshotResponse(snapshot_id=snapshot_id)

    async def SandboxSnapshotWait(
        self, request: api_pb2.SandboxSnapshotWaitRequest, ctx: Context
    ) -> api_pb2.SandboxSnapshotWaitResponse:
        failure = await self._service.outcome(request.snapshot_id, wait_s(request.timeout, _POLL_S))
        response = api_pb2.SandboxSnapshotWaitResponse()
        if failure is None:
            response.result.status = api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT
            response.result.exception = "The memory snapshot is not there yet"
        elif failure:
            response.result.status = api_pb2.GenericResult.GENERIC_STATUS_FAILURE
            response.result.exception = failure
        else:
            response.result.status = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
        return response

    async def SandboxSnapshotGet(
        self, request: api_pb2.SandboxSnapshotGetRequest, ctx: Context
    ) -> api_pb2.SandboxSnapshotGetResponse:
        snapshot = await self._service.get(request.snapshot_id)
        response = api_pb2.SandboxSnapshotGetResponse(snapshot_id=snapshot.snapshot_id)
        response.handle_metadata.is_v2 = snapshot.sandbox.is_v2
        return response

    async def SandboxRestore(
        self, request: api_pb2.SandboxRestoreRequest, ctx: Context
    ) -> api_pb2.SandboxRestoreResponse:
        if request.replace_volume_mounts and request.volume_mounts:
            raise UnimplementedError("Homeport does not restore sandboxes with other volumes yet")
        record = await self._restore(request, ctx, is_v2=False)
        return api_pb2.SandboxRestoreResponse(sandbox_id=record.sandbox_id)

    async def SandboxRestoreV2(
        self, request: api_pb2.SandboxRestoreV2Request, ctx: Context
    ) -> api_pb2.SandboxRestoreV2Response:
        record = await self._restore(request, ctx, is_v2=True)
        response = api_pb2.SandboxRestoreV2Response(
            sandbox_id=record.sandbox_id, metadata=wire.metadata(record)
        )
        say_where(response, record, self._routers, ctx)
        return response

    async def _restore(
        self,
        request: api_pb2.SandboxRestoreRequest | api_pb2.SandboxRestoreV2Request,
        ctx: Context,
        *,
        is_v2: bool,
    ) -> SandboxRecord:
        name: str | None = None
        if request.sandbox_name_override_type == _Override.SANDBOX_NAME_OVERRIDE_TYPE_NONE:
            name = ""
        elif request.sandbox_name_override_type == _Override.SANDBOX_NAME_OVERRIDE_TYPE_STRING:
            name = request.sandbox_name_override
        return await self._service.restore(
            request.snapshot_id,
            name=name,
            is_v2=is_v2,
            seed=ctx.operation,
            is_repeat=is_repeat(ctx),
        )
