"""RPC handlers of images."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.images import wire
from homeport.images.names import NamedImages
from homeport.images.service import ImageService
from homeport.kernel.errors import NotFoundError
from homeport.kernel.numbers import wait_s
from homeport.rpc.context import Context, caller_of


class ImagesRpc:
    """``ImageGetOrCreate``, ``ImageJoinStreaming`` and look-ups."""

    def __init__(self, service: ImageService, names: NamedImages) -> None:
        self._service = service
        self._names = names

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
            timeout_s=wait_s(request.timeout),
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

    # ── names ───────────────────────────────────────────────────────────────────────────────

    async def ImagePublish(
        self, request: api_pb2.ImagePublishRequest, ctx: Context
    ) -> api_pb2.ImagePublishResponse:
        published = await self._names.publish(
            request.image_id,
            request.tag,
            environment=request.environment_name or ctx.environment,
            published_by=caller_of(ctx.identity),
            revision_id=ctx.new_id("ir"),
        )
        return api_pb2.ImagePublishResponse(
            image_id=published.image_id, revision_id=published.revision_id
        )

    async def ImageGetByTag(
        self, request: api_pb2.ImageGetByTagRequest, ctx: Context
    ) -> api_pb2.ImageGetByTagResponse:
        environment = request.environment_name or ctx.environment
        found = await self._names.find(request.tag, environment=environment)
        return api_pb2.ImageGetByTagResponse(image_id=found.image_id)

    async def ImageListTags(
        self, request: api_pb2.ImageListTagsRequest, ctx: Context
    ) -> api_pb2.ImageListTagsResponse:
        environment, rows, token = await self._names.list(
            environment=request.environment_name or ctx.environment,
            prefix=request.tag_prefix,
            image_id=request.image_id,
            after=request.page_token,
            limit=request.max_objects,
        )
        return api_pb2.ImageListTagsResponse(
            items=[wire.tag(named, first) for named, first in rows],
            next_page_token=token,
            environment_name=environment.name,
        )

    async def ImageTagRevisions(
        self, request: api_pb2.ImageTagRevisionsRequest, ctx: Context
    ) -> api_pb2.ImageTagRevisionsResponse:
        environment, name, rows, token = await self._names.revisions(
            request.tag,
            environment=request.environment_name or ctx.environment,
            before=request.page_token,
            limit=request.max_objects,
        )
        return api_pb2.ImageTagRevisionsResponse(
            items=[wire.revision(named) for named in rows],
            next_page_token=token,
            tag=name,
            environment_name=environment.name,
        )

    async def ImageNameDelete(self, request: api_pb2.ImageNameDeleteRequest, ctx: Context) -> Empty:
        await self._names.delete(request.tag, environment=ctx.environment, operation=ctx.operation)
        return Empty()

    async def ImageDelete(self, request: api_pb2.ImageDeleteRequest, ctx: Context) -> Empty:
        await self._names.delete_image(request.image_id, ctx.operation)
        return Empty()
