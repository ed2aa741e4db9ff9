"""RPC handlers of volumes. Both generations of methods do the same on both versions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.environments.service import EnvironmentService
from homeport.kernel import ids
from homeport.kernel.errors import ConflictError
from homeport.objects.service import Objects
from homeport.objects.wire import creation_of
from homeport.rpc.context import Context, TaskIdentity, caller_of
from homeport.volumes import wire
from homeport.volumes.model import VOLUME, version_details
from homeport.volumes.service import VolumeService
from homeport.volumes.store import record


class VolumeRpc:
    """The ``Volume…`` methods."""

    def __init__(
        self, objects: Objects, service: VolumeService, environments: EnvironmentService
    ) -> None:
        self._objects = objects
        self._service = service
        self._environments = environments

    # ── volumes ─────────────────────────────────────────────────────────────────────────────

    async def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest, ctx: Context
    ) -> api_pb2.VolumeGetOrCreateResponse:
        item = await self._objects.get_or_create(
            self._environments.resolve(request.environment_name or ctx.environment),
            request.deployment_name,
            creation_of(VOLUME, request.object_creation_type),
            object_id=ctx.new_id(ids.VOLUME),
            created_by=caller_of(ctx.identity),
            details=version_details(request.version),
            record=record,
        )
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=item.id, version=wire.version_message(item), metadata=wire.metadata(item)
        )

    async def VolumeGetById(
        self, request: api_pb2.VolumeGetByIdRequest, ctx: Context
    ) -> api_pb2.VolumeGetByIdResponse:
        item = self._objects.get(request.volume_id)
        return api_pb2.VolumeGetByIdResponse(volume_id=item.id, metadata=wire.metadata(item))

    async def VolumeHeartbeat(self, request: api_pb2.VolumeHeartbeatRequest, ctx: Context) -> Empty:
        self._objects.heartbeat(request.volume_id)
        return Empty()

    async def VolumeList(
        self, request: api_pb2.VolumeListRequest, ctx: Context
    ) -> api_pb2.VolumeListResponse:
        environment = self._environments.resolve(request.environment_name or ctx.environment)
        found = self._objects.list(
            environment,
            created_before=request.pagination.created_before,
            count=request.pagination.max_objects,
        )
        return api_pb2.VolumeListResponse(
            items=map(wire.list_item, found), environment_name=environment.name
        )

    async def VolumeRename(self, request: api_pb2.VolumeRenameRequest, ctx: Context) -> Empty:
        await self._objects.rename(request.volume_id, request.name)
        return Empty()

    async def VolumeDelete(self, request: api_pb2.VolumeDeleteRequest, ctx: Context) -> Empty:
        await self._objects.delete(request.volume_id, ctx.operation)
        return Empty()

    # ── uploads ─────────────────────────────────────────────────────────────────────────────

    async def VolumePutFiles(self, request: api_pb2.VolumePutFilesRequest, ctx: Context) -> Empty:
        files = [
            (file.filename, file.sha256_hex, file.mode if file.HasField("mode") else 0o644)
            for file in request.files
        ]
        await self._service.upload_contents(
            request.volume_id,
            files,
            overwrite=not request.disallow_overwrite_existing_files,
            change_id=ctx.new_id(ids.VOLUME_CHANGE),
        )
        return Empty()

    async def VolumePutFiles2(
        self, request: api_pb2.VolumePutFiles2Request, ctx: Context
    ) -> api_pb2.VolumePutFiles2Response:
        files = [wire.new_file(file) for file in request.files]
        absent = await self._service.upload_blocks(
            request.volume_id,
            files,
            overwrite=not request.disallow_overwrite_existing_files,
            change_id=ctx.new_id(ids.VOLUME_CHANGE),
        )
        return api_pb2.VolumePutFiles2Response(
            missing_blocks=[
                api_pb2.VolumePutFiles2Response.MissingBlock(
                    file_index=file_index,
                    block_index=block_index,
                    put_url=self._service.blocks.put_url(ctx.http_base, sha256),
                )
                for file_index, block_index, sha256 in wire.places(files, absent)
            ]
        )

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    async def VolumeGetFile(
        self, request: api_pb2.VolumeGetFileRequest, ctx: Context
    ) -> api_pb2.VolumeGetFileResponse:
        entry = await self._service.entry(request.volume_id, request.path)
        start, length = wire.part(entry.size, request.start, request.len)
        found = await self._service.read(entry, start, length)
        response = api_pb2.VolumeGetFileResponse(size=entry.size, start=start, len=length)
        if isinstance(found, bytes):
            response.data = found
        else:
            response.data_blob_id = found
        return response

    async def VolumeGetFile2(
        self, request: api_pb2.VolumeGetFile2Request, ctx: Context
    ) -> api_pb2.VolumeGetFile2Response:
        entry = await self._service.entry(request.volume_id, request.path)
        start, length = wire.part(entry.size, request.start, request.len)
        urls = self._service.blocks.get_urls(
            ctx.http_base, entry, start, length, stripped=request.client_pads_blocks
        )
        return api_pb2.VolumeGetFile2Response(
            get_urls=urls, size=entry.size, start=start, len=length
        )

    async def VolumeListFiles(
        self, request: api_pb2.VolumeListFilesRequest, ctx: Context
    ) -> AsyncIterator[api_pb2.VolumeListFilesResponse]:
        async for batch in self._service.list_files(
            request.volume_id,
            request.path,
            recursive=request.recursive,
            limit=request.max_entries,
        ):
            yield api_pb2.VolumeListFilesResponse(entries=map(wire.file_entry, batch))

    async def VolumeListFiles2(
        self, request: api_pb2.VolumeListFiles2Request, ctx: Context
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        async for batch in self._service.list_files(
            request.volume_id,
            request.path,
            recursive=request.recursive,
            limit=request.max_entries,
        ):
            yield api_pb2.VolumeListFiles2Response(entries=map(wire.file_entry, batch))

    # ── other changes ───────────────────────────────────────────────────────────────────────

    async def VolumeRemoveFile(
        self, request: api_pb2.VolumeRemoveFileRequest, ctx: Context
    ) -> Empty:
        return await self._remove(request.volume_id, request.path, request.recursive, ctx)

    async def VolumeRemoveFile2(
        self, request: api_pb2.VolumeRemoveFile2Request, ctx: Context
    ) -> Empty:
        return await self._remove(request.volume_id, request.path, request.recursive, ctx)

    async def _remove(self, volume_id: str, path: str, recursive: bool, ctx: Context) -> Empty:
        await self._service.remove(
            volume_id, path, recursive=recursive, change_id=ctx.new_id(ids.VOLUME_CHANGE)
        )
        return Empty()

    async def VolumeCopyFiles(self, request: api_pb2.VolumeCopyFilesRequest, ctx: Context) -> Empty:
        return await self._copy(
            request.volume_id, list(request.src_paths), request.dst_path, request.recursive, ctx
        )

    async def VolumeCopyFiles2(
        self, request: api_pb2.VolumeCopyFiles2Request, ctx: Context
    ) -> Empty:
        return await self._copy(
            request.volume_id, list(request.src_paths), request.dst_path, request.recursive, ctx
        )

    async def _copy(
        self, volume_id: str, sources: list[str], target: str, recursive: bool, ctx: Context
    ) -> Empty:
        await self._service.copy(
            volume_id,
            sources,
            target,
            recursive=recursive,
            change_id=ctx.new_id(ids.VOLUME_CHANGE),
        )
        return Empty()

    # ── mounted volumes: a node answers these for what it mounted ───────────────────────────

    async def VolumeCommit(
        self, request: api_pb2.VolumeCommitRequest, ctx: Context
    ) -> api_pb2.VolumeCommitResponse:
        self._objects.get(request.volume_id)
        raise _not_mounted(ctx)

    async def VolumeReload(self, request: api_pb2.VolumeReloadRequest, ctx: Context) -> Empty:
        self._objects.get(request.volume_id)
        raise _not_mounted(ctx)


def _not_mounted(ctx: Context) -> ConflictError:
    what = "commit" if ctx.method == "VolumeCommit" else "reload"
    if isinstance(ctx.identity, TaskIdentity):
        return ConflictError(
            f"cannot {what} a volume that is not mounted in this container: pass it to the "
            "function with volumes="
        )
    return ConflictError(
        f"{what} is for containers that have the volume mounted, and this is not running in a "
        "container: changes made from here are visible at once"
    )
