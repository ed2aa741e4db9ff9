"""RPC handlers of Queues."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.environments.service import EnvironmentService
from homeport.kernel.numbers import wait_s
from homeport.objects.model import StoredObject
from homeport.objects.wire import creation_info, creation_of
from homeport.queues.model import QUEUE
from homeport.queues.service import QueueService
from homeport.rpc.context import Context, caller_of


class QueueRpc:
    """The ``Queue…`` methods."""

    def __init__(self, service: QueueService, environments: EnvironmentService) -> None:
        self._service = service
        self._objects = service.objects
        self._environments = environments

    async def QueueGetOrCreate(
        self, request: api_pb2.QueueGetOrCreateRequest, ctx: Context
    ) -> api_pb2.QueueGetOrCreateResponse:
        item = await self._objects.get_or_create(
            self._environments.resolve(request.environment_name, ctx.environment),
            request.deployment_name,
            creation_of(QUEUE, request.object_creation_type),
            object_id=ctx.new_id(QUEUE.prefix),
            created_by=caller_of(ctx.identity),
        )
        return api_pb2.QueueGetOrCreateResponse(queue_id=item.id, metadata=_metadata(item))

    async def QueueGetById(
        self, request: api_pb2.QueueGetByIdRequest, ctx: Context
    ) -> api_pb2.QueueGetByIdResponse:
        item = self._objects.get(request.queue_id)
        return api_pb2.QueueGetByIdResponse(queue_id=item.id, metadata=_metadata(item))

    async def QueueHeartbeat(self, request: api_pb2.QueueHeartbeatRequest, ctx: Context) -> Empty:
        self._objects.heartbeat(request.queue_id)
        return Empty()

    async def QueueList(
        self, request: api_pb2.QueueListRequest, ctx: Context
    ) -> api_pb2.QueueListResponse:
        environment = self._environments.resolve(request.environment_name, ctx.environment)
        items = self._objects.list(
            environment,
            created_before=request.pagination.created_before,
            count=request.pagination.max_objects,
        )
        return api_pb2.QueueListResponse(
            queues=[self._info(item, request.total_size_limit) for item in items],
            environment_name=environment.name,
        )

    def _info(self, item: StoredObject, size_max: int) -> api_pb2.QueueListResponse.QueueInfo:
        size = self._service.size(item.id)
        return api_pb2.QueueListResponse.QueueInfo(
            name=item.name,
            created_at=item.created_at,
            num_partitions=size.partitions,
            total_size=min(size.items, size_max) if size_max > 0 else size.items,
            queue_id=item.id,
            metadata=_metadata(item),
        )

    async def QueueDelete(self, request: api_pb2.QueueDeleteRequest, ctx: Context) -> Empty:
        await self._objects.delete(request.queue_id, ctx.operation)
        return Empty()

    async def QueuePut(self, request: api_pb2.QueuePutRequest, ctx: Context) -> Empty:
        await self._service.put(
            request.queue_id,
            request.partition_key,
            list(request.values),  # each access makes new objects of all of them
            ttl_s=request.partition_ttl_seconds,
            operation=ctx.operation,
        )
        return Empty()

    async def QueueGet(
        self, request: api_pb2.QueueGetRequest, ctx: Context
    ) -> api_pb2.QueueGetResponse:
        values = await self._service.get(
            request.queue_id,
            request.partition_key,
            count=request.n_values,
            timeout_s=wait_s(request.timeout),
            operation=ctx.operation,
        )
        return api_pb2.QueueGetResponse(values=values)

    async def QueueNextItems(
        self, request: api_pb2.QueueNextItemsRequest, ctx: Context
    ) -> api_pb2.QueueNextItemsResponse:
        found = await self._service.next_items(
            request.queue_id,
            request.partition_key,
            last_entry_id=request.last_entry_id,
            timeout_s=wait_s(request.item_poll_timeout),
        )
        return api_pb2.QueueNextItemsResponse(
            items=[api_pb2.QueueItem(entry_id=entry_id, value=value) for entry_id, value in found]
        )

    async def QueueLen(
        self, request: api_pb2.QueueLenRequest, ctx: Context
    ) -> api_pb2.QueueLenResponse:
        if request.total:
            return api_pb2.QueueLenResponse(len=self._service.size(request.queue_id).items)
        return api_pb2.QueueLenResponse(
            len=self._service.len(request.queue_id, request.partition_key)
        )

    async def QueueClear(self, request: api_pb2.QueueClearRequest, ctx: Context) -> Empty:
        await self._service.clear(
            request.queue_id, request.partition_key, all_partitions=request.all_partitions
        )
        return Empty()


def _metadata(item: StoredObject) -> api_pb2.QueueMetadata:
    return api_pb2.QueueMetadata(name=item.name, creation_info=creation_info(item))
