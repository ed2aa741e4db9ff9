"""History and statistics in the protocol's messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from homeport.history.metrics import Row, Series
from homeport.history.model import PERCENTILES, Entry, Summary, percentiles
from homeport.history.service import Live, enqueued_at
from homeport.history.statistics import Containers, Statistics
from homeport.kernel.errors import InvalidError
from homeport.kernel.numbers import Moment, time_ns
from homeport.link.messages import (
    STATUS_FAILURE,
    STATUS_IDLE_TIMEOUT,
    STATUS_INIT_FAILURE,
    STATUS_INTERNAL_FAILURE,
    STATUS_OUT_OF_MEMORY,
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    STATUS_TIMEOUT,
)
from homeport.tasks.model import TaskRecord

_STATUSES: Final = {
    STATUS_SUCCESS: api_pb2.FUNCTION_CALL_INPUT_STATUS_SUCCESS,
    STATUS_FAILURE: api_pb2.FUNCTION_CALL_INPUT_STATUS_FAILURE,
    STATUS_TERMINATED: api_pb2.FUNCTION_CALL_INPUT_STATUS_TERMINATED,
    STATUS_TIMEOUT: api_pb2.FUNCTION_CALL_INPUT_STATUS_TIMEOUT,
    STATUS_INIT_FAILURE: api_pb2.FUNCTION_CALL_INPUT_STATUS_INIT_FAILURE,
    STATUS_INTERNAL_FAILURE: api_pb2.FUNCTION_CALL_INPUT_STATUS_INTERNAL_FAILURE,
    STATUS_IDLE_TIMEOUT: api_pb2.FUNCTION_CALL_INPUT_STATUS_IDLE_TIMEOUT,
    STATUS_OUT_OF_MEMORY: api_pb2.FUNCTION_CALL_INPUT_STATUS_KERNEL_OOM_KILL,
}
EXECUTION: Final = "Execution time (s)"
LATENCY: Final = "End-to-end latency (s)"
REQUEST_LATENCY: Final = "Latency (s)"
STARTUP: Final = "Startup time (s)"
"""The names under which the client shows distributions, in its own order."""
_UNIT: Final = "seconds"
_LATEST: Final = 253_402_300_799.0
"""The last second of the year 9999: what a ``Timestamp`` can say."""


def seconds(moment: Moment, what: str) -> float:
    """In Unix seconds. Raises ``InvalidError`` naming ``what`` it is, if it is no time."""
    found = time_ns(moment, what) / 1e9
    if not 0 <= found <= _LATEST:
        raise InvalidError(f"{what} must be between the years 1970 and 9999.")
    return found


def timestamp(time: float) -> Timestamp:
    """A Unix time, to the microsecond."""
    found = Timestamp()
    found.FromMicroseconds(round(time * 1e6))
    return found


def input_info(
    each: Entry | Live, tasks: Mapping[str, TaskRecord]
) -> api_pb2.FunctionCallInputInfo:
    """One input; ``tasks`` are the containers of those that had one."""
    info = api_pb2.FunctionCallInputInfo(enqueued_at=timestamp(enqueued_at(each)))
    if isinstance(each, Live):
        item = each.item
        info.function_call_id = item.call.call_id
        name, started_at, task_id = item.method_name, 0.0, ""
        info.status = api_pb2.FUNCTION_CALL_INPUT_STATUS_PENDING
        if each.is_running:
            info.status = api_pb2.FUNCTION_CALL_INPUT_STATUS_RUNNING
            started_at, task_id = item.started_at, item.task_id
    else:
        info.function_call_id = each.call_id
        name, started_at, task_id = each.name, each.started_at, each.task_id
        info.status = _STATUSES.get(each.status, api_pb2.FUNCTION_CALL_INPUT_STATUS_FAILURE)
        if started_at:
            info.execution_time_seconds = max(0.0, each.finished_at - started_at)
    if started_at:
        info.started_at.CopyFrom(timestamp(started_at))
    if name:
        info.service_method_name = name
    if task_id:
        info.container_id = task_id
        task = tasks.get(task_id)
        if task is not None and task.started_at > enqueued_at(each):  # it had to wait for it
            info.startup_time_seconds = task.started_at - task.enqueued_at
    return info


def request_info(entry: Entry) -> api_pb2.ServerRequestInfo:
    """One request of a server."""
    return api_pb2.ServerRequestInfo(
        route=entry.name,
        timestamp=timestamp(entry.enqueued_at),
        container_id=entry.task_id,
        duration_seconds=max(0.0, entry.finished_at - entry.enqueued_at),
        status=entry.status,
    )


def function_stats(found: Statistics) -> api_pb2.FunctionGetTimeRangeStatsResponse:
    """The statistics of a function."""
    response = api_pb2.FunctionGetTimeRangeStatsResponse(
        since=timestamp(found.span.since),
        until=timestamp(found.span.until),
        input_success_count=found.ended.succeeded,
        input_failure_count=found.ended.failed,
        input_timeout_count=found.ended.timed_out,
        input_running_at_end_count=found.running,
        container_started_count=found.containers.started,
        container_error_count=found.containers.failed,
        container_creating_at_end_count=found.containers.creating,
        container_total_count=found.containers.total,
        variant_count=found.variants,
    )
    _distribute(response.input_percentile_stats[EXECUTION], found.ended.execution)
    _distribute(response.input_percentile_stats[LATENCY], found.ended.latency)
    _distribute(response.container_percentile_stats[STARTUP], found.containers.startup)
    return response


def server_stats(found: Statistics) -> api_pb2.ServerGetTimeRangeStatsResponse:
    """The statistics of a server."""
    response = api_pb2.ServerGetTimeRangeStatsResponse(
        since=timestamp(found.span.since),
        until=timestamp(found.span.until),
        request_count=found.ended.total,
        request_rate_per_second=found.ended.total / found.span.seconds,
        container_started_count=found.containers.started,
        container_error_count=found.containers.failed,
        container_creating_at_end_count=found.containers.creating,
        container_total_count=found.containers.total,
    )
    for status, count in found.ended.families().items():
        response.request_count_by_status_code.add(status_code=status, count=count)
    _distribute(response.request_percentile_stats[REQUEST_LATENCY], found.ended.latency)
    _distribute(response.container_percentile_stats[STARTUP], found.containers.startup)
    return response


def _distribute(target: api_pb2.StatsPercentileDistribution, bins: Mapping[int, int]) -> None:
    target.unit = _UNIT
    for percentile, value in zip(PERCENTILES, percentiles(bins), strict=False):
        target.percentiles.add(percentile_basis_points=round(percentile * 100), value=value)


def call_counts(ended: Summary) -> api_pb2.AppCallCounts:
    """How inputs ended."""
    return api_pb2.AppCallCounts(
        total=ended.total, succeeded=ended.succeeded, failed=ended.total - ended.succeeded
    )


def request_counts(ended: Summary) -> api_pb2.AppRequestCounts:
    """How requests were answered."""
    well = ended.answered_well
    return api_pb2.AppRequestCounts(total=ended.total, ok=well, failed=ended.total - well)


def container_counts(containers: Containers) -> api_pb2.AppContainerCounts:
    """What an app's statistics say of containers."""
    return api_pb2.AppContainerCounts(
        container_errors=containers.failed, container_active_count=containers.total
    )


def definition(row: Row) -> api_pb2.MetricGroupDefinition:
    """Series that are shown as one."""
    return api_pb2.MetricGroupDefinition(
        name=row.group,
        description=row.description,
        display_name=row.name,
        metrics=[
            api_pb2.MetricDefinition(name=each.name, unit=each.unit, description=each.description)
            for each in row.series
        ],
    )


def metric_series(
    series: Series, points: Sequence[tuple[float, float | None]]
) -> api_pb2.FunctionMetricSeries:
    """One series with its points."""
    return api_pb2.FunctionMetricSeries(
        name=series.name,
        unit=series.unit,
        description=series.description,
        points=[
            api_pb2.FunctionMetricPoint(timestamp=timestamp(time), value=value)
            for time, value in points
        ],
    )
