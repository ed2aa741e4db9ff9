"""RPC handlers of network file systems, which the protocol calls shared volumes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.environments.model import Environment
from homeport.environments.service import EnvironmentService
from homeport.kernel import ids
from homeport.kernel.errors import NotFoundError
from homeport.nfs.model import NETWORK_FILE_SYSTEM, Entry, EntryKind
from homeport.nfs.service import NetworkFileSystems
from homeport.objects.model import Creation
from homeport.objects.service import Objects
from homeport.objects.wire import creation_of
from homeport.rpc.context import Context, caller_of

_BATCH_ENTRIES: Final = 2_000
_IS_A_VOLUME: Final = "App has wrong entity vo"
"""Clients know a name that is a Volume's by exactly this message."""
_TYPES: Final = {
    EntryKind.FILE: api_pb2.FileEntry.FILE,
    EntryKind.DIRECTORY: api_pb2.FileEntry.DIRECTORY,
    EntryKind.SYMLINK: api_pb2.FileEntry.SYMLINK,
    EntryKind.OTHER: api_pb2.FileEntry.UNSPECIFIED,
}


class NetworkFileSystemRpc:
    """The ``SharedVolume…`` methods; ``volumes`` are asked for names that are theirs."""

    def __init__(
        self,
        objects: Objects,
        service: NetworkFileSystems,
        environments: EnvironmentService,
        volumes: Objects,
    ) -> None:
        self._objects = objects
        self._service = service
        self._environments = environments
        self._volumes = volumes

    async def SharedVolumeGetOrCreate(
        self, request: api_pb2.SharedVolumeGetOrCreateRequest, ctx: Context
    ) -> api_pb2.SharedVolumeGetOrCreateResponse:
        environment = self._environments.resolve(request.environment_name or ctx.environment)
        creation = creation_of(NETWORK_FILE_SYSTEM, request.object_creation_type)
        if creation is not Creation.EPHEMERAL:
            self._refuse_volume(environment, request.deployment_name)
        item = await self._objects.get_or_create(
            environment,
            request.deployment_name,
            creation,
            object_id=ctx.new_id(ids.SHARED_VOLUME),
            created_by=caller_of(ctx.identity),
        )
        return api_pb2.SharedVolumeGetOrCreateResponse(shared_volume_id=item.id)

    def _refuse_volume(self, environment: Environment, name: str) -> None:
        """Raise ``NotFoundError`` for a name that is a Volume's and no network file system's."""
        if self._objects.has_name(environment, name):
            return
        if self._volumes.has_name(environment, name):
            raise NotFoundError(_IS_A_VOLUME)

    async def SharedVolumeHeartbeat(
        self, request: api_pb2.SharedVolumeHeartbeatRequest, ctx: Context
    ) -> Empty:
        self._objects.heartbeat(request.shared_volume_id)
        return Empty()

    async def SharedVolumeList(
        self, request: api_pb2.SharedVolumeListRequest, ctx: Context
    ) -> api_pb2.SharedVolumeListResponse:
        environment = self._environments.resolve(request.environment_name or ctx.environment)
        items = self._objects.list(environment, created_before=0.0, count=0)
        return api_pb2.SharedVolumeListResponse(
            items=[
                api_pb2.SharedVolumeListItem(
                    label=item.name, shared_volume_id=item.id, created_at=item.created_at
                )
                for item in items
            ],
            environment_name=environment.name,
        )

    async def SharedVolumeDelete(
        self, request: api_pb2.SharedVolumeDeleteRequest, ctx: Context
    ) -> Empty:
        await self._objects.delete(request.shared_volume_id, ctx.operation)
        return Empty()

    # ── files ───────────────────────────────────────────────────────────────────────────────

    async def SharedVolumePutFile(
        self, request: api_pb2.SharedVolumePutFileRequest, ctx: Context
    ) -> api_pb2.SharedVolumePutFileResponse:
        data = request.data_blob_id or request.data
        await self._service.write(request.shared_volume_id, request.path, data)
        return api_pb2.SharedVolumePutFileResponse(exists=True)

    async def SharedVolumeGetFile(
        self, request: api_pb2.SharedVolumeGetFileRequest, ctx: Context
    ) -> api_pb2.SharedVolumeGetFileResponse:
        found = await self._service.read(request.shared_volume_id, request.path)
        if isinstance(found, bytes):
            return api_pb2.SharedVolumeGetFileResponse(data=found)
        return api_pb2.SharedVolumeGetFileResponse(data_blob_id=found)

    async def SharedVolumeListFiles(
        self, request: api_pb2.SharedVolumeListFilesRequest, ctx: Context
    ) -> api_pb2.SharedVolumeListFilesResponse:
        found = await self._service.list(request.shared_volume_id, request.path)
        return api_pb2.SharedVolumeListFilesResponse(entries=map(_file_entry, found))

    async def SharedVolumeListFilesStream(
        self, request: api_pb2.SharedVolumeListFilesRequest, ctx: Context
    ) -> AsyncIterator[api_pb2.SharedVolumeListFilesResponse]:
        found = iter(await self._service.list(request.shared_volume_id, request.path))
        while batch := list(itertools.islice(found, _BATCH_ENTRIES)):
            yield api_pb2.SharedVolumeListFilesResponse(entries=map(_file_entry, batch))

    async def SharedVolumeRemoveFile(
        self, request: api_pb2.SharedVolumeRemoveFileRequest, ctx: Context
    ) -> Empty:
        await self._service.remove(
            request.shared_volume_id,
            request.path,
            recursive=request.recursive,
            operation=ctx.operation,
        )
        return Empty()


def _file_entry(entry: Entry) -> api_pb2.FileEntry:
    return api_pb2.FileEntry(
        path=entry.path, type=_TYPES[entry.kind], mtime=int(entry.mtime), size=entry.size
    )
