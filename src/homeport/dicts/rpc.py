"""RPC handlers of Dicts."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.dicts.model import DICT
from homeport.dicts.service import DictService
from homeport.environments.service import EnvironmentService
from homeport.objects.model import StoredObject
from homeport.objects.wire import creation_info, creation_of
from homeport.rpc.context import Context, caller_of


class DictRpc:
    """The ``Dict…`` methods."""

    def __init__(self, service: DictService, environments: EnvironmentService) -> None:
        self._service = service
        self._objects = service.objects
        self._environments = environments

    async def DictGetOrCreate(
        self, request: api_pb2.DictGetOrCreateRequest, ctx: Context
    ) -> api_pb2.DictGetOrCreateResponse:
        item = await self._service.create(
            self._environments.resolve(request.environment_name, ctx.environment),
            request.deployment_name,
            creation_of(DICT, request.object_creation_type),
            data=[(entry.key, entry.value) for entry in request.data],
            object_id=ctx.new_id(DICT.prefix),
            created_by=caller_of(ctx.identity),
        )
        return api_pb2.DictGetOrCreateResponse(dict_id=item.id, metadata=_metadata(item))

    async def DictGetById(
        self, request: api_pb2.DictGetByIdRequest, ctx: Context
    ) -> api_pb2.DictGetByIdResponse:
        item = self._objects.get(request.dict_id)
        return api_pb2.DictGetByIdResponse(dict_id=item.id, metadata=_metadata(item))

    async def DictHeartbeat(self, request: api_pb2.DictHeartbeatRequest, ctx: Context) -> Empty:
        self._objects.heartbeat(request.dict_id)
        return Empty()

    async def DictList(
        self, request: api_pb2.DictListRequest, ctx: Context
    ) -> api_pb2.DictListResponse:
        environment = self._environments.resolve(request.environment_name, ctx.environment)
        items = self._objects.list(
            environment,
            created_before=request.pagination.created_before,
            count=request.pagination.max_objects,
        )
        return api_pb2.DictListResponse(
            dicts=[
                api_pb2.DictListResponse.DictInfo(
                    name=item.name,
                    created_at=item.created_at,
                    dict_id=item.id,
                    metadata=_metadata(item),
                )
                for item in items
            ],
            environment_name=environment.name,
        )

    async def DictDelete(self, request: api_pb2.DictDeleteRequest, ctx: Context) -> Empty:
        await self._objects.delete(request.dict_id, ctx.operation)
        return Empty()

    async def DictClear(self, request: api_pb2.DictClearRequest, ctx: Context) -> Empty:
        await self._service.clear(request.dict_id)
        return Empty()

    async def DictGet(
        self, request: api_pb2.DictGetRequest, ctx: Context
    ) -> api_pb2.DictGetResponse:
        value = await self._service.get(request.dict_id, request.key)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    async def DictContains(
        self, request: api_pb2.DictContainsRequest, ctx: Context
    ) -> api_pb2.DictContainsResponse:
        found = await self._service.contains(request.dict_id, request.key)
        return api_pb2.DictContainsResponse(found=found)

    async def DictPop(
        self, request: api_pb2.DictPopRequest, ctx: Context
    ) -> api_pb2.DictPopResponse:
        value = await self._service.pop(request.dict_id, request.key, ctx.operation)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def DictUpdate(
        self, request: api_pb2.DictUpdateRequest, ctx: Context
    ) -> api_pb2.DictUpdateResponse:
        created = await self._service.update(
            request.dict_id,
            [(entry.key, entry.value) for entry in request.updates],
            if_not_exists=request.if_not_exists,
            operation=ctx.operation,
        )
        return api_pb2.DictUpdateResponse(created=created)

    async def DictLen(
        self, request: api_pb2.DictLenRequest, ctx: Context
    ) -> api_pb2.DictLenResponse:
        return api_pb2.DictLenResponse(len=await self._service.len(request.dict_id))

    async def DictContents(
        self, request: api_pb2.DictContentsRequest, ctx: Context
    ) -> AsyncIterator[api_pb2.DictEntry]:
        with_keys = request.keys
        contents = self._service.contents(request.dict_id, with_values=request.values)
        async for key, value in contents:
            yield api_pb2.DictEntry(key=key if with_keys else b"", value=value)


def _metadata(item: StoredObject) -> api_pb2.DictMetadata:
    return api_pb2.DictMetadata(name=item.name, creation_info=creation_info(item))
