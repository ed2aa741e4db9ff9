"""RPC handlers of images."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from modal_proto import api_pb2

from homeport.images import wire
from homeport.images.service import ImageService
from homeport.kernel.errors import NotFoundError
from homeport.rpc.context import Context


class ImagesRpc:
    """``ImageGetOrCreate``, ``ImageJoinStreaming`` and look-ups."""

    def __init__(self, service: ImageService) -> None:
        self._service = service

    async def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest, ctx: Context
    ) -> api_pb2.ImageGetOrCreateResponse:
        record = await self._service.get_or_create(wire.image_request(request))
        return wire.created(record)

    async def ImageJoinStreaming(
        self, request: api_pb2.ImageJoinStreamingRequest, ctx: Context
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        events = self._service.follow(
            request.image_id,
            timeout_s=request.timeout,
            last_entry_id=request.last_entry_id,
            with_finished_log=request.include_logs_for_finished,
        )
        async with aclosing(events):
            async for event in events:
                yield wire.joined(event)

    async def ImageFromId(
        self, request: api_pb2.ImageFromIdRequest, ctx: Context
    ) -> api_pb2.ImageFromIdResponse:
        record = self._service.find(request.image_id)
        if record is None:
            raise NotFoundError(f"Image {request.image_id!r} not found")
        return api_pb2.ImageFromIdResponse(image_id=record.image_id, metadata=wire.metadata(record))

    async def ImageBuildChainGet(
        self, request: api_pb2.ImageBuildChainGetRequest, ctx: Context
    ) -> api_pb2.ImageBuildChainGetResponse:
        steps = self._service.chain(request.image_id)
        return api_pb2.ImageBuildChainGetResponse(
            build_steps=[wire.build_step(record) for record in steps]
        )
