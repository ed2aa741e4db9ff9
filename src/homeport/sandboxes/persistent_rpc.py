"""RPC handlers of persistent sandboxes."""

from __future__ import annotations

from modal_proto import api_pb2

from homeport.kernel.errors import InvalidError, UnimplementedError
from homeport.rpc.context import Context
from homeport.sandboxes import wire
from homeport.sandboxes.persistent import PersistentSandboxes
from homeport.sandboxes.rpc import SandboxRpc, is_repeat


class PersistentSandboxRpc:
    """``PersistentSandbox*``."""

    def __init__(self, service: PersistentSandboxes, sandboxes: SandboxRpc) -> None:
        self._service = service
        self._sandboxes = sandboxes

    async def PersistentSandboxCreate(
        self, request: api_pb2.PersistentSandboxCreateRequest, ctx: Context
    ) -> api_pb2.PersistentSandboxCreateResponse:
        definition = request.definition
        if definition.environment_variables.contents:
            raise InvalidError("Persistent sandboxes take variables by named secrets only")
        if definition.name:
            raise UnimplementedError("Homeport does not name persistent sandboxes yet")
        record = await self._service.create(
            request.app_id,
            wire.spec_of(definition),
            list(definition.secret_ids),
            seed=ctx.operation,
            is_repeat=is_repeat(ctx),
        )
        return api_pb2.PersistentSandboxCreateResponse(
            persistent_sandbox_id=record.persistent_id, sandbox_id=record.session_id
        )

    async def PersistentSandboxGet(
        self, request: api_pb2.PersistentSandboxGetRequest, ctx: Context
    ) -> api_pb2.PersistentSandboxGetResponse:
        if request.HasField("name"):
            raise UnimplementedError("Homeport does not name persistent sandboxes yet")
        persistent_id = request.persistent_sandbox_id
        return api_pb2.PersistentSandboxGetResponse(
            persistent_sandbox_id=persistent_id,
            sandbox_id=await self._service.running(persistent_id),
        )

    async def PersistentSandboxResume(
        self, request: api_pb2.PersistentSandboxResumeRequest, ctx: Context
    ) -> api_pb2.PersistentSandboxResumeResponse:
        session_id = await self._service.resume(request.persistent_sandbox_id)
        return api_pb2.PersistentSandboxResumeResponse(sandbox_id=session_id)

    async def PersistentSandboxTerminate(
        self, request: api_pb2.PersistentSandboxTerminateRequest, ctx: Context
    ) -> api_pb2.PersistentSandboxTerminateResponse:
        await self._service.terminate(request.persistent_sandbox_id)
        return api_pb2.PersistentSandboxTerminateResponse()

    async def PersistentSandboxTunnelsList(
        self, request: api_pb2.PersistentSandboxTunnelsListRequest, ctx: Context
    ) -> api_pb2.PersistentSandboxTunnelsListResponse:
        response = api_pb2.PersistentSandboxTunnelsListResponse()
        session_id = await self._service.running(request.persistent_sandbox_id)
        if session_id:
            ask = api_pb2.SandboxGetTunnelsRequest(sandbox_id=session_id, timeout=50.0)
            response.tunnels.extend((await self._sandboxes.SandboxGetTunnels(ask, ctx)).tunnels)
        return response
