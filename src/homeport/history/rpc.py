"""RPC handlers of call history and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from homeport.apps.service import AppService
from homeport.apps.wire import lifecycle
from homeport.functions.model import FunctionRecord
from homeport.functions.service import FunctionService
from homeport.history import metrics, wire
from homeport.history.model import Entry, Range, checked
from homeport.history.service import HistoryService, Live, Subject
from homeport.history.statistics import Member, StatisticsService, add_up
from homeport.history.usage import Used
from homeport.kernel.errors import InvalidError
from homeport.rpc.context import Context
from homeport.tasks.service import TaskService


class _Bounds(Protocol):
    """A request with a time range."""

    @property
    def since(self) -> Timestamp: ...
    @property
    def until(self) -> Timestamp: ...


class HistoryRpc:
    """What was called, what was asked of servers, and how both went."""

    def __init__(
        self,
        history: HistoryService,
        statistics: StatisticsService,
        functions: FunctionService,
        apps: AppService,
        tasks: TaskService,
    ) -> None:
        self._history = history
        self._statistics = statistics
        self._functions = functions
        self._apps = apps
        self._tasks = tasks

    def _function(self, function_id: str, ctx: Context, *, is_server: bool) -> FunctionRecord:
        """The function (server). Containers are told of their own app's only."""
        record = self._functions.get(function_id)
        ctx.require_app(record.app_id)
        if (record.spec is not None and record.spec.is_server) != is_server:
            kind = "a function, not a server" if is_server else "a server, not a function"
            other = "function" if is_server else "server"
            raise InvalidError(
                f"{record.tag!r} ({function_id}) is {kind}: use the `modal {other}` commands."
            )
        return record

    async def _fetched(
        self,
        subject: Subject,
        request: api_pb2.FunctionCallFetchRequest | api_pb2.ServerRequestFetchRequest,
        what: str,
    ) -> list[Entry | Live]:
        which = request.WhichOneof("query_oneof")
        if which == "tail":
            return await self._history.newest(subject, request.tail.count)
        if which == "range":
            span = _range(request.range)
            return await self._history.between(subject, span, request.range.limit)
        raise InvalidError(f"Say which {what}: the last ones (tail) or those of a time (range).")

    async def _counted(
        self,
        subject: Subject,
        request: api_pb2.FunctionCallCountRequest | api_pb2.ServerCountRequestsRequest,
    ) -> list[tuple[Timestamp, int]]:
        """When a bucket begins, and how many were in it."""
        found = await self._history.count(subject, _range(request), request.bucket_secs)
        return [(Timestamp(seconds=n * request.bucket_secs), count) for n, count in found.items()]

    # ── functions ───────────────────────────────────────────────────────────────────────────

    async def FunctionCallFetch(
        self, request: api_pb2.FunctionCallFetchRequest, ctx: Context
    ) -> api_pb2.FunctionCallFetchResponse:
        record = self._function(request.function_id, ctx, is_server=False)
        subject = Subject(record, request.all_variants)
        found = await self._fetched(subject, request, "calls")
        names = (each.item.task_id if isinstance(each, Live) else each.task_id for each in found)
        tasks = await self._tasks.some(name for name in names if name)
        return api_pb2.FunctionCallFetchResponse(
            function_call_inputs=[wire.input_info(each, tasks) for each in found]
        )

    async def FunctionCallCount(
        self, request: api_pb2.FunctionCallCountRequest, ctx: Context
    ) -> api_pb2.FunctionCallCountResponse:
        record = self._function(request.function_id, ctx, is_server=False)
        subject = Subject(record, request.all_variants)
        response = api_pb2.FunctionCallCountResponse()
        for start, count in await self._counted(subject, request):
            response.buckets.add(bucket_start_at=start, count=count)
        return response

    async def FunctionGetTimeRangeStats(
        self, request: api_pb2.FunctionGetTimeRangeStatsRequest, ctx: Context
    ) -> api_pb2.FunctionGetTimeRangeStatsResponse:
        record = self._function(request.function_id, ctx, is_server=False)
        span = _range(request)
        found = await self._statistics.of_function(
            Subject(record, request.rollup), span.since, span.until, request.container_id
        )
        return wire.function_stats(found)

    # ── servers ─────────────────────────────────────────────────────────────────────────────

    async def ServerRequestFetch(
        self, request: api_pb2.ServerRequestFetchRequest, ctx: Context
    ) -> api_pb2.ServerRequestFetchResponse:
        subject = Subject(self._function(request.function_id, ctx, is_server=True))
        found = await self._fetched(subject, request, "requests")
        return api_pb2.ServerRequestFetchResponse(
            requests=[wire.request_info(each) for each in found if isinstance(each, Entry)]
        )

    async def ServerCountRequests(
        self, request: api_pb2.ServerCountRequestsRequest, ctx: Context
    ) -> api_pb2.ServerCountRequestsResponse:
        subject = Subject(self._function(request.function_id, ctx, is_server=True))
        response = api_pb2.ServerCountRequestsResponse()
        for start, count in await self._counted(subject, request):
            response.buckets.add(bucket_start_at=start, count=count)
        return response

    async def ServerGetTimeRangeStats(
        self, request: api_pb2.ServerGetTimeRangeStatsRequest, ctx: Context
    ) -> api_pb2.ServerGetTimeRangeStatsResponse:
        subject = Subject(self._function(request.function_id, ctx, is_server=True))
        span = _range(request)
        found = await self._statistics.of_function(
            subject, span.since, span.until, request.container_id
        )
        return wire.server_stats(found)

    # ── apps ────────────────────────────────────────────────────────────────────────────────

    async def AppGetTimeRangeStats(
        self, request: api_pb2.AppGetTimeRangeStatsRequest, ctx: Context
    ) -> api_pb2.AppGetTimeRangeStatsResponse:
        app = self._apps.get(request.app_id)
        ctx.require_app(app.app_id)
        span = _range(request)
        found = await self._statistics.of_app(app, span.since, span.until)
        response = api_pb2.AppGetTimeRangeStatsResponse(
            since=wire.timestamp(span.since),
            until=wire.timestamp(span.until),
            sandboxes=api_pb2.AppSandboxCounts(
                total=found.sandboxes_finished + found.sandboxes_live,
                finished=found.sandboxes_finished,
                live=found.sandboxes_live,
            ),
            lifecycle=lifecycle(app),
            deployment_count=found.deployments,
        )
        servers: list[Member] = []
        functions: list[Member] = []
        for name, member in found.members.items():
            if member.record.spec is not None and member.record.spec.is_server:
                servers.append(member)
                row = response.servers.by_name[name]
                row.counts.requests.CopyFrom(wire.request_counts(member.ended))
            else:
                functions.append(member)
                row = response.functions.by_name[name]
                row.counts.calls.CopyFrom(wire.call_counts(member.ended))
            row.object_id = member.record.function_id
            row.counts.containers.CopyFrom(wire.container_counts(member.containers))
        ended, containers = add_up(functions)
        response.functions.total.calls.CopyFrom(wire.call_counts(ended))
        response.functions.total.containers.CopyFrom(wire.container_counts(containers))
        ended, containers = add_up(servers)
        response.servers.total.requests.CopyFrom(wire.request_counts(ended))
        response.servers.total.containers.CopyFrom(wire.container_counts(containers))
        return response

    # ── metrics ─────────────────────────────────────────────────────────────────────────────

    async def MetricsGetInfo(
        self, request: api_pb2.MetricsGetInfoRequest, ctx: Context
    ) -> api_pb2.MetricsGetInfoResponse:
        kind = request.target_type
        if kind not in (request.METRICS_TARGET_TYPE_FUNCTION, request.METRICS_TARGET_TYPE_SERVER):
            raise InvalidError(f"target_type cannot be {kind}; there are functions and servers.")
        is_server = kind == request.METRICS_TARGET_TYPE_SERVER
        window = _window(request)
        return api_pb2.MetricsGetInfoResponse(
            groups=map(wire.definition, metrics.chosen(request.groups, is_server=is_server)),
            bucket_secs=window.bucket_s,
            bucket_count=window.end - window.first,
        )

    async def FunctionGetMetrics(
        self, request: api_pb2.FunctionGetMetricsRequest, ctx: Context
    ) -> api_pb2.FunctionGetMetricsResponse:
        record = self._function(request.function_id, ctx, is_server=False)
        rows = metrics.chosen(request.groups, is_server=False)
        window = _window(request)
        since, until = wire.timestamp(window.span.since), wire.timestamp(window.span.until)
        return api_pb2.FunctionGetMetricsResponse(
            since=since,
            until=until,
            bucket_secs=window.bucket_s,
            series=await self._series(Subject(record, request.rollup), rows, window),
        )

    async def ServerGetMetrics(
        self, request: api_pb2.ServerGetMetricsRequest, ctx: Context
    ) -> api_pb2.ServerGetMetricsResponse:
        record = self._function(request.function_id, ctx, is_server=True)
        rows = metrics.chosen(request.groups, is_server=True)
        window = _window(request)
        since, until = wire.timestamp(window.span.since), wire.timestamp(window.span.until)
        return api_pb2.ServerGetMetricsResponse(
            since=since,
            until=until,
            bucket_secs=window.bucket_s,
            series=await self._series(Subject(record), rows, window),
        )

    async def _series(
        self, subject: Subject, rows: Sequence[metrics.Row], window: metrics.Window
    ) -> list[api_pb2.FunctionMetricSeries]:
        ended = await self._history.by_bucket(subject, window.span, window.bucket_s)
        containers = await self._statistics.containers_by_bucket(
            subject, window.first, window.end, window.bucket_s
        )
        used: dict[int, Used] = {}
        if any(row.group in (metrics.CPU, metrics.MEMORY) for row in rows):
            used = await self._statistics.used_by_bucket(
                subject, window.first, window.end, window.bucket_s
            )
        return [
            wire.metric_series(each, metrics.points(each, window, ended, containers, used))
            for row in rows
            for each in row.series
        ]


def _window(
    request: api_pb2.MetricsGetInfoRequest
    | api_pb2.FunctionGetMetricsRequest
    | api_pb2.ServerGetMetricsRequest,
) -> metrics.Window:
    """The buckets that a request is about. Raises ``InvalidError``."""
    span = _range(request)
    bucket_s = request.bucket_secs if request.HasField("bucket_secs") else None
    return metrics.window(span.since, span.until, bucket_s)


def _range(bounds: _Bounds) -> Range:
    """The time range that a request names. Raises ``InvalidError``."""
    return checked(wire.seconds(bounds.since, "since"), wire.seconds(bounds.until, "until"))
