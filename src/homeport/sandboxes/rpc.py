"""RPC handlers of sandboxes: both generations over one service, whatever the id's shape."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.apps.service import AppService
from homeport.environments.service import EnvironmentService
from homeport.kernel import ids
from homeport.kernel.errors import DeadlineError, InvalidError, NotFoundError, UnavailableError
from homeport.kernel.numbers import time_ns, wait_s
from homeport.link.messages import HTTPS_PORT, ConnectScope
from homeport.logs.model import Filter
from homeport.logs.service import LogService
from homeport.nodes.routers import LOCAL_HOSTS, Routers
from homeport.rpc.context import Context
from homeport.sandboxes import wire
from homeport.sandboxes.model import CONNECT_PORT, SandboxRecord, check_connect
from homeport.sandboxes.service import Places, SandboxService
from homeport.sandboxes.statistics import SandboxStatistics

_POLL_S: Final = 60.0
"""A wait is answered within it, whatever the client asks."""
SNAPSHOT_TTL_S: Final = 30 * 86400.0
"""How long an image is kept that a client asks for without saying how long it wants it."""
_EXIT_SNAPSHOT_S: Final = 10.0
"""A question for an exit snapshot is held no longer: clients ask again."""
_TASK_ID_S: Final = 55.0
"""How long a question for the task's id is held, if the client does not say."""


class SandboxRpc:
    """``Sandbox*`` of the control plane."""

    def __init__(
        self,
        service: SandboxService,
        statistics: SandboxStatistics,
        apps: AppService,
        environments: EnvironmentService,
        logs: LogService,
        routers: Routers,
        *,
        image_metadata: Callable[[str], api_pb2.ImageMetadata],
    ) -> None:
        self._service = service
        self._statistics = statistics
        self._apps = apps
        self._environments = environments
        self._logs = logs
        self._routers = routers
        self._image_metadata = image_metadata

    # ── creation ────────────────────────────────────────────────────────────────────────────

    async def SandboxCreate(
        self, request: api_pb2.SandboxCreateRequest, ctx: Context
    ) -> api_pb2.SandboxCreateResponse:
        definition = request.definition
        record = await self._service.create(
            request.app_id,
            wire.spec_of(definition),
            name=definition.name,
            tags=wire.tags_of(request.tags),
            sources=wire.secret_sources(definition, (), api_pb2.StringMap()),
            bucket_credentials={},
            is_v2=False,
            seed=ctx.operation,
            is_repeat=is_repeat(ctx),
        )
        return api_pb2.SandboxCreateResponse(
            sandbox_id=record.sandbox_id, metadata=wire.metadata(record)
        )

    async def SandboxCreateV2(
        self, request: api_pb2.SandboxCreateV2Request, ctx: Context
    ) -> api_pb2.SandboxCreateV2Response:
        definition = request.definition
        record = await self._service.create(
            request.app_id,
            wire.spec_of(definition),
            name=definition.name,
            tags=wire.tags_of(request.tags),
            sources=wire.secret_sources(
                definition, request.secret_sources, request.ephemeral_secrets
            ),
            bucket_credentials=wire.bucket_credentials(request.cloud_bucket_mount_credentials),
            is_v2=True,
            seed=ctx.operation,
            is_repeat=is_repeat(ctx),
        )
        response = api_pb2.SandboxCreateV2Response(
            sandbox_id=record.sandbox_id, metadata=wire.metadata(record)
        )
        say_where(response, record, self._routers, ctx)
        return response

    # ── waiting ─────────────────────────────────────────────────────────────────────────────

    async def SandboxWait(
        self, request: api_pb2.SandboxWaitRequest, ctx: Context
    ) -> api_pb2.SandboxWaitResponse:
        record = await self._service.wait(request.sandbox_id, wait_s(request.timeout, _POLL_S))
        response = api_pb2.SandboxWaitResponse(metadata=wire.metadata(record))
        if record.result is not None:
            response.result.CopyFrom(wire.result_message(record.result))
        return response

    async def SandboxWaitV2(
        self, request: api_pb2.SandboxWaitRequest, ctx: Context
    ) -> api_pb2.SandboxWaitResponse:
        return await self.SandboxWait(request, ctx)

    async def SandboxGetTaskId(
        self, request: api_pb2.SandboxGetTaskIdRequest, ctx: Context
    ) -> api_pb2.SandboxGetTaskIdResponse:
        timeout_s = wait_s(request.timeout) if request.HasField("timeout") else _TASK_ID_S
        record = await self._service.placed(request.sandbox_id, min(timeout_s, _POLL_S))
        response = api_pb2.SandboxGetTaskIdResponse()
        if record.node_id:
            response.task_id = record.task_id
        if record.result is not None:
            response.task_result.CopyFrom(wire.result_message(record.result))
        return response

    async def SandboxGetTaskIdV2(
        self, request: api_pb2.SandboxGetTaskIdRequest, ctx: Context
    ) -> api_pb2.SandboxGetTaskIdResponse:
        return await self.SandboxGetTaskId(request, ctx)

    async def SandboxGetCommandRouterAccess(
        self, request: api_pb2.SandboxGetCommandRouterAccessRequest, ctx: Context
    ) -> api_pb2.SandboxGetCommandRouterAccessResponse:
        record = await self._service.get(request.sandbox_id or request.task_id)
        if not record.node_id and record.result is None:
            record = await self._service.placed(record.sandbox_id, _TASK_ID_S)
        # Also when it has ended: what it printed can still be read.
        url, jwt = self._routers.access(record.task_id, record.node_id, ctx)
        return api_pb2.SandboxGetCommandRouterAccessResponse(url=url, jwt=jwt)

    async def SandboxWaitUntilReady(
        self, request: api_pb2.SandboxWaitUntilReadyRequest, ctx: Context
    ) -> api_pb2.SandboxWaitUntilReadyResponse:
        try:
            ready_at = await self._service.until_ready(request.sandbox_id, wait_s(request.timeout))
        except DeadlineError:
            ready_at = (
                0.0  # those who ask here (1.4.1 to 1.5.0) look at their own clock, and ask again
            )
        return api_pb2.SandboxWaitUntilReadyResponse(ready_at=ready_at)

    async def ContainerReloadVolumes(
        self, request: api_pb2.ContainerReloadVolumesRequest, ctx: Context
    ) -> api_pb2.ContainerReloadVolumesResponse:
        await self._service.reload_volumes(request.task_id)
        return api_pb2.ContainerReloadVolumesResponse()

    async def SandboxGetTunnels(
        self, request: api_pb2.SandboxGetTunnelsRequest, ctx: Context
    ) -> api_pb2.SandboxGetTunnelsResponse:
        success = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
        response = api_pb2.SandboxGetTunnelsResponse(result=success)
        try:
            record = await self._service.placed(
                request.sandbox_id, wait_s(request.timeout, _POLL_S)
            )
            if not record.spec.ports:
                return response
            host, place = self._host_of(record, ctx)
            tunnels = await self._service.tunnels(
                request.sandbox_id, wait_s(request.timeout, _POLL_S), place
            )
        except DeadlineError as error:
            response.result.status = api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT
            response.result.exception = error.message
            return response
        response.tunnels.extend(wire.tunnel(host, tunnel) for tunnel in tunnels)
        return response

    async def SandboxGetTunnelsV2(
        self, request: api_pb2.SandboxGetTunnelsRequest, ctx: Context
    ) -> api_pb2.SandboxGetTunnelsResponse:
        return await self.SandboxGetTunnels(request, ctx)

    def _host_of(self, record: SandboxRecord, ctx: Context) -> tuple[str, Places | None]:
        """Under which name its node is reached, and who gives tunnels an address of their own."""
        host = self._routers.host(record.node_id, ctx) if record.node_id else ""
        # On one machine each tunnel can have an address, where others have a host name.
        return host, self._routers.own_address if host in LOCAL_HOSTS else None

    async def SandboxCreateConnectToken(
        self, request: api_pb2.SandboxCreateConnectTokenRequest, ctx: Context
    ) -> api_pb2.SandboxCreateConnectTokenResponse:
        port = request.port or CONNECT_PORT
        check_connect(port, request.user_metadata)
        scope = ConnectScope(port, request.user_metadata or None)
        record = await self._service.placed(request.sandbox_id, _POLL_S)
        host, place = self._host_of(record, ctx)
        record, door = await self._service.door(request.sandbox_id, _POLL_S, place)
        authority = door.host or host
        if door.encrypted != HTTPS_PORT:
            authority = f"{authority}:{door.encrypted}"
        token = self._routers.connect_token(
            record.task_id, record.node_id, record.spec.timeout_s, scope
        )
        return api_pb2.SandboxCreateConnectTokenResponse(url=f"https://{authority}", token=token)

    async def SandboxCreateConnectTokenV2(
        self, request: api_pb2.SandboxCreateConnectTokenRequest, ctx: Context
    ) -> api_pb2.SandboxCreateConnectTokenResponse:
        return await self.SandboxCreateConnectToken(request, ctx)

    # ── the end ─────────────────────────────────────────────────────────────────────────────

    async def SandboxTerminate(
        self, request: api_pb2.SandboxTerminateRequest, ctx: Context
    ) -> api_pb2.SandboxTerminateResponse:
        existing = await self._service.terminate(request.sandbox_id)
        response = api_pb2.SandboxTerminateResponse()
        if existing is not None:
            response.existing_result.CopyFrom(wire.result_message(existing))
        return response

    async def SandboxTerminateV2(
        self, request: api_pb2.SandboxTerminateRequest, ctx: Context
    ) -> api_pb2.SandboxTerminateResponse:
        return await self.SandboxTerminate(request, ctx)

    # ── standard streams of the first generation ────────────────────────────────────────────

    async def SandboxGetLogs(
        self, request: api_pb2.SandboxGetLogsRequest, ctx: Context
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        record = await self._service.get(request.sandbox_id)
        events = self._logs.follow(
            record.app_id,
            Filter(task_id=record.task_id, fd=int(request.file_descriptor)),
            after_id=_entry_id(request.last_entry_id, record.log_position),
            timeout_s=wait_s(request.timeout, _POLL_S),
            task_finished=record.is_over,
        )
        async with aclosing(events):
            async for event in events:
                batch = wire.log_batch(event)
                if batch is not None:
                    yield batch

    async def SandboxStdinWrite(
        self, request: api_pb2.SandboxStdinWriteRequest, ctx: Context
    ) -> api_pb2.SandboxStdinWriteResponse:
        await self._service.write_stdin(
            request.sandbox_id, request.index, request.input, eof=request.eof
        )
        return api_pb2.SandboxStdinWriteResponse()

    # ── snapshots and tunnels ───────────────────────────────────────────────────────────────

    async def SandboxSnapshotFs(
        self, request: api_pb2.SandboxSnapshotFsRequest, ctx: Context
    ) -> api_pb2.SandboxSnapshotFsResponse:
        image_id = ctx.new_id(ids.IMAGE)
        await self._service.snapshot(request.sandbox_id, image_id, SNAPSHOT_TTL_S)
        response = api_pb2.SandboxSnapshotFsResponse(image_id=image_id)
        response.result.status = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
        response.image_metadata.CopyFrom(self._image_metadata(image_id))
        return response

    async def SandboxGetExitSnapshot(
        self, request: api_pb2.SandboxGetExitSnapshotRequest, ctx: Context
    ) -> api_pb2.SandboxGetExitSnapshotResponse:
        response = api_pb2.SandboxGetExitSnapshotResponse()
        await self._service.get(request.sandbox_id)
        try:
            image_id = await self._service.exit_snapshot(
                request.sandbox_id, wait_s(request.timeout, _EXIT_SNAPSHOT_S)
            )
        except NotFoundError as error:
            # The client has an error of its own for these two codes only.
            response.error.error_code = response.ERROR_CODE_FILESYSTEM_INCONSISTENT
            response.error.message = error.message
            return response
        if image_id is None:
            response.pending.SetInParent()
        else:
            response.success.image_id = image_id
        return response

    async def SandboxGetExitSnapshotV2(
        self, request: api_pb2.SandboxGetExitSnapshotRequest, ctx: Context
    ) -> api_pb2.SandboxGetExitSnapshotResponse:
        return await self.SandboxGetExitSnapshot(request, ctx)

    # ── what it uses ────────────────────────────────────────────────────────────────────────

    async def SandboxGetStats(
        self, request: api_pb2.SandboxGetStatsRequest, ctx: Context
    ) -> api_pb2.SandboxGetStatsResponse:
        since = time_ns(request.since, "since") / 1e9
        until = time_ns(request.until, "until") / 1e9
        if until and since >= until:
            raise InvalidError("`since` must be before `until`")
        return wire.stats(*await self._statistics.of_one(request.sandbox_id, since, until))

    async def SandboxGetStatsV2(
        self, request: api_pb2.SandboxGetStatsRequest, ctx: Context
    ) -> api_pb2.SandboxGetStatsResponse:
        return await self.SandboxGetStats(request, ctx)

    async def SandboxGetResourceUsage(
        self, request: api_pb2.SandboxGetResourceUsageRequest, ctx: Context
    ) -> api_pb2.SandboxGetResourceUsageResponse:
        record = await self._service.get(request.sandbox_id)
        usage, _ = await self._statistics.of_one(request.sandbox_id, 0.0, 0.0)
        return wire.resource_usage(usage, record.spec.gpu_count, record.spec.gpu_type)

    async def SandboxGetTimeRangeStats(
        self, request: api_pb2.SandboxGetTimeRangeStatsRequest, ctx: Context
    ) -> api_pb2.SandboxGetTimeRangeStatsResponse:
        app = self._apps.get(request.app_id)
        groups = await self._statistics.of_app(
            app.app_id,
            time_ns(request.since, "since") / 1e9,
            time_ns(request.until, "until") / 1e9,
            group_by=list(dict.fromkeys(request.group_by_tags)),
            tags=dict(request.tags),
        )
        return api_pb2.SandboxGetTimeRangeStatsResponse(groups=map(wire.stats_group, groups))

    # ── look-ups ────────────────────────────────────────────────────────────────────────────

    async def SandboxGetFromName(
        self, request: api_pb2.SandboxGetFromNameRequest, ctx: Context
    ) -> api_pb2.SandboxGetFromNameResponse:
        environment = self._environments.resolve(request.environment_name, ctx.environment)
        app = self._apps.deployed(request.app_name, environment.name)
        if app is None:
            raise NotFoundError(
                f"App {request.app_name!r} not found in environment {environment.name!r}"
            )
        record = await self._service.named(
            app.app_id, request.sandbox_name, ended_too=request.include_terminated
        )
        return api_pb2.SandboxGetFromNameResponse(
            sandbox_id=record.sandbox_id, metadata=wire.metadata(record)
        )

    async def SandboxGetFromNameV2(
        self, request: api_pb2.SandboxGetFromNameRequest, ctx: Context
    ) -> api_pb2.SandboxGetFromNameResponse:
        return await self.SandboxGetFromName(request, ctx)

    async def SandboxList(
        self, request: api_pb2.SandboxListRequest, ctx: Context
    ) -> api_pb2.SandboxListResponse:
        records = await self._service.list(
            self._apps_of(request, ctx),
            tags=wire.tags_of(request.tags),
            before=request.before_timestamp,
            ended_too=request.include_finished,
        )
        return api_pb2.SandboxListResponse(sandboxes=[wire.info(record) for record in records])

    async def SandboxListV2(
        self, request: api_pb2.SandboxListRequest, ctx: Context
    ) -> api_pb2.SandboxListResponse:
        return await self.SandboxList(request, ctx)

    def _apps_of(self, request: api_pb2.SandboxListRequest, ctx: Context) -> list[str]:
        if request.app_id:
            return [self._apps.get(request.app_id).app_id]
        environment = self._environments.resolve(request.environment_name, ctx.environment)
        return [app.app_id for app in self._apps.list(environment.name)]

    # ── names and tags ──────────────────────────────────────────────────────────────────────

    async def SandboxTagsGet(
        self, request: api_pb2.SandboxTagsGetRequest, ctx: Context
    ) -> api_pb2.SandboxTagsGetResponse:
        record = await self._service.get(request.sandbox_id)
        return api_pb2.SandboxTagsGetResponse(tags=wire.tag_messages(record.tags))

    async def SandboxTagsGetV2(
        self, request: api_pb2.SandboxTagsGetRequest, ctx: Context
    ) -> api_pb2.SandboxTagsGetResponse:
        return await self.SandboxTagsGet(request, ctx)

    async def SandboxTagsSet(self, request: api_pb2.SandboxTagsSetRequest, ctx: Context) -> Empty:
        await self._service.set_tags(request.sandbox_id, wire.tags_of(request.tags))
        return Empty()

    async def SandboxTagsSetV2(self, request: api_pb2.SandboxTagsSetRequest, ctx: Context) -> Empty:
        return await self.SandboxTagsSet(request, ctx)

    async def SandboxSetName(
        self, request: api_pb2.SandboxSetNameRequest, ctx: Context
    ) -> api_pb2.SandboxSetNameResponse:
        await self._service.set_name(request.sandbox_id, request.name)
        return api_pb2.SandboxSetNameResponse()


def say_where(
    response: api_pb2.SandboxCreateV2Response | api_pb2.SandboxRestoreV2Response,
    record: SandboxRecord,
    routers: Routers,
    ctx: Context,
) -> None:
    """Which task a new sandbox is and how its node is reached, if that is known by now."""
    if not record.node_id:
        return
    response.task_id = record.task_id
    # Without it the client asks for it when it needs it.
    with contextlib.suppress(UnavailableError):
        url, jwt = routers.access(record.task_id, record.node_id, ctx)
        response.command_router_access.url = url
        response.command_router_access.jwt = jwt


def is_repeat(ctx: Context) -> bool:
    """Whether an earlier call of the same key may have been answered."""
    return ctx.metadata.get("x-retry-attempt", "") != "0"


def _entry_id(text: str, first: int) -> int:
    """After which entry a reader goes on: Python begins with nothing, the other SDKs with ``0-0``."""
    if text in ("", "0-0"):
        return first
    if not text.isdecimal():
        raise InvalidError(f"{text[:80]!r} is not an entry id of this server")
    return int(text)
