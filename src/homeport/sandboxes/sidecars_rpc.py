"""RPC handlers of sidecar containers."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from modal_proto import api_pb2
from modal_proto import task_command_router_pb2 as router

from homeport.kernel.errors import InvalidError
from homeport.rpc.context import Context
from homeport.sandboxes import wire
from homeport.sandboxes.sidecars import SidecarService


class SidecarRpc:
    """``SandboxContainer*``; and the router's way of creating one, which its node hands on."""

    def __init__(self, service: SidecarService) -> None:
        self._service = service

    async def SandboxContainerCreateV2(
        self, request: api_pb2.SandboxContainerCreateV2Request, ctx: Context
    ) -> api_pb2.SandboxContainerCreateV2Response:
        container_id = await self._create(request, ctx.operation)
        return api_pb2.SandboxContainerCreateV2Response(
            container_id=container_id, container_name=request.container_name
        )

    async def from_router(self, task_id: str, body: bytes) -> bytes:
        """The answer to a router's ``TaskContainerCreate``. Raises ``HomeportError``."""
        try:
            asked = router.TaskContainerCreateRequest.FromString(body)
        except DecodeError:
            raise InvalidError("the request of TaskContainerCreate is not its message") from None
        definition = api_pb2.Sandbox(
            entrypoint_args=asked.args,
            image_id=asked.image_id,
            secret_ids=asked.secret_ids,
            volume_mounts=asked.volume_mounts,
        )
        if asked.workdir:
            definition.workdir = asked.workdir
        if asked.HasField("network_access"):
            definition.network_access.CopyFrom(asked.network_access)
        if asked.HasField("pty_info"):
            definition.pty_info.CopyFrom(asked.pty_info)
        definition.resources.memory_mb = asked.memory_reserve_consume_mib
        request = api_pb2.SandboxContainerCreateV2Request(
            sandbox_id=task_id,
            container_name=asked.container_name,
            definition=definition,
            secret_sources=asked.secret_sources,
        )
        request.ephemeral_secrets.contents.update(asked.env)
        container_id = await self._create(request, "")
        return router.TaskContainerCreateResponse(
            container_id=container_id, container_name=asked.container_name
        ).SerializeToString()

    async def _create(self, request: api_pb2.SandboxContainerCreateV2Request, seed: str) -> str:
        definition = request.definition
        return await self._service.create(
            request.sandbox_id,
            request.container_name,
            wire.spec_of(definition),
            sources=wire.secret_sources(
                definition, request.secret_sources, request.ephemeral_secrets
            ),
            bucket_credentials=wire.bucket_credentials(request.cloud_bucket_mount_credentials),
            seed=seed,
        )
