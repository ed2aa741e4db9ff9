"""RPC handlers of mounts."""

from __future__ import annotations

import time

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from homeport.environments.service import EnvironmentService
from homeport.kernel.errors import InvalidError, UnimplementedError
from homeport.mounts.model import Mount, RequestedFile
from homeport.mounts.service import MountService
from homeport.rpc.context import Context


class MountRpc:
    """``MountBatchedCheckExistence``, ``MountPutFile`` and ``MountGetOrCreate``."""

    def __init__(self, service: MountService, environments: EnvironmentService) -> None:
        self._service = service
        self._environments = environments

    async def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest, ctx: Context
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = await self._service.missing(request.sha256_hex_hashes)
        return api_pb2.MountBatchedCheckExistenceResponse(
            missing_sha256_hex_hashes=missing, checked_at=_now()
        )

    async def MountPutFile(
        self, request: api_pb2.MountPutFileRequest, ctx: Context
    ) -> api_pb2.MountPutFileResponse:
        match request.WhichOneof("data_oneof"):
            case "data":
                await self._service.put_file(request.sha256_hex, request.data)
                exists = True
            case "data_blob_id":
                await self._service.put_blob(request.sha256_hex, request.data_blob_id)
                exists = True
            case _:  # clients up to 1.5.2 ask this way whether they need to upload
                exists = await self._service.has_file(request.sha256_hex)
        return api_pb2.MountPutFileResponse(exists=exists, checked_at=_now())

    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest, ctx: Context
    ) -> api_pb2.MountGetOrCreateResponse:
        mount = await self._get_or_create(request, ctx)
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex=mount.digest)
        return api_pb2.MountGetOrCreateResponse(mount_id=mount.id, handle_metadata=metadata)

    async def _get_or_create(self, request: api_pb2.MountGetOrCreateRequest, ctx: Context) -> Mount:
        kind = request.object_creation_type
        is_global = request.namespace == api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL
        files = [_requested(file) for file in request.files]
        if kind in (
            api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP,
            api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL,
        ):
            return await self._service.create(files)
        if not request.deployment_name:
            raise InvalidError("a mount that is looked up or kept needs a name")
        if kind == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED and is_global:
            return await self._service.named_global(request.deployment_name)
        if is_global:
            raise UnimplementedError("global mounts are made by the server; name another namespace")
        environment = self._environments.resolve(request.environment_name or ctx.environment)
        if kind == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            return await self._service.named(environment, request.deployment_name)
        if kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS:
            raise UnimplementedError("overwriting a named mount is not supported; use another name")
        return await self._service.create_named(
            files,
            environment=environment,
            name=request.deployment_name,
            keep=kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
        )


def _requested(file: api_pb2.MountFile) -> RequestedFile:
    mode = file.mode if file.HasField("mode") else 0o644
    return RequestedFile(file.filename, file.sha256_hex, mode)


def _now() -> Timestamp:
    return Timestamp(seconds=int(time.time()))
