"""Who is told, and what bad requests are answered with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2
from tests.unit.history.test_service import START, Home, opened

from homeport.apps.model import App, AppState
from homeport.history.rpc import HistoryRpc
from homeport.history.statistics import StatisticsService
from homeport.kernel.errors import InvalidError, NotFoundError, PermissionDeniedError
from homeport.link.messages import Answer, AskUsage, Message, UsageSample
from homeport.rpc.context import ClientIdentity, Context, Identity, TaskIdentity
from homeport.tasks.model import TaskRecord
from homeport.tasks.service import TaskService
from homeport.tasks.store import TaskStore

CLIENT = ClientIdentity("ak-1")
STRANGER = TaskIdentity("ta-1", "ap-2", "main", "fu-9")
SPAN = {"since": Timestamp(seconds=int(START) - 60), "until": Timestamp(seconds=int(START) + 3600)}


class Apps:
    """One app with one function and one server."""

    def get(self, app_id: str) -> App:
        return App(
            app_id=app_id,
            description="x",
            environment="main",
            state=AppState.DEPLOYED,
            created_at=START,
        )


class Sandboxes:
    async def counts(self, app_id: str, since: float, until: float) -> tuple[int, int]:
        return 2, 1


class Nodes:
    """Every container that runs has used half a core."""

    async def ask(self, node_id: str, make: Callable[[int], Message]) -> Answer:
        asked = make(1)
        assert isinstance(asked, AskUsage)
        samples = [UsageSample(START, 0.0, 0), UsageSample(START + 60, 30.0, 2**30)]
        return Answer(asked.ask_id, usage=samples)


Ask = Callable[[str, Any, Identity], Awaitable[Any]]


def run(path: Path, scenario: Callable[[Home, TaskService, Ask], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(path) as home:
            tasks = TaskService(TaskStore(home.database), home.clock)
            statistics = StatisticsService(
                home.history, home.functions, tasks, Sandboxes(), Nodes(), home.clock
            )
            rpc = HistoryRpc(home.history, statistics, home.functions, cast(Any, Apps()), tasks)

            async def ask(method: str, request: Any, identity: Identity = CLIENT) -> Any:
                ctx = Context(
                    method=method,
                    request_id="1",
                    identity=identity,
                    client_version="1.6.4",
                    client_type=1,
                    http_base="",
                )
                return await getattr(rpc, method)(request, ctx)

            await home.function("fu-1")
            await home.function("fu-2", is_server=True)
            await scenario(home, tasks, ask)

    asyncio.run(main())


def requests() -> list[tuple[str, Any]]:
    """One good request of each kind."""
    tail, server_tail = (
        api_pb2.FunctionCallFetchRequest.Tail(count=1),
        api_pb2.ServerRequestFetchRequest.Tail(count=1),
    )
    return [
        ("FunctionCallFetch", api_pb2.FunctionCallFetchRequest(function_id="fu-1", tail=tail)),
        (
            "FunctionCallCount",
            api_pb2.FunctionCallCountRequest(function_id="fu-1", bucket_secs=60, **SPAN),
        ),
        (
            "FunctionGetTimeRangeStats",
            api_pb2.FunctionGetTimeRangeStatsRequest(function_id="fu-1", **SPAN),
        ),
        ("FunctionGetMetrics", api_pb2.FunctionGetMetricsRequest(function_id="fu-1", **SPAN)),
        (
            "ServerRequestFetch",
            api_pb2.ServerRequestFetchRequest(function_id="fu-2", tail=server_tail),
        ),
        (
            "ServerCountRequests",
            api_pb2.ServerCountRequestsRequest(function_id="fu-2", bucket_secs=60, **SPAN),
        ),
        (
            "ServerGetTimeRangeStats",
            api_pb2.ServerGetTimeRangeStatsRequest(function_id="fu-2", **SPAN),
        ),
        ("ServerGetMetrics", api_pb2.ServerGetMetricsRequest(function_id="fu-2", **SPAN)),
        ("AppGetTimeRangeStats", api_pb2.AppGetTimeRangeStatsRequest(app_id="ap-1", **SPAN)),
    ]


def test_containers_are_told_of_their_own_app_only(tmp_path: Path) -> None:
    async def scenario(_home: Home, _tasks: TaskService, ask: Ask) -> None:
        own = TaskIdentity("ta-1", "ap-1", "main", "fu-1")
        for method, request in requests():
            for identity in (CLIENT, own):
                await ask(method, request, identity)
            with pytest.raises(PermissionDeniedError, match=method):
                await ask(method, request, STRANGER)

    run(tmp_path, scenario)


def test_functions_are_no_servers_and_servers_no_functions(tmp_path: Path) -> None:
    async def scenario(_home: Home, _tasks: TaskService, ask: Ask) -> None:
        for method, request in requests()[:-1]:
            other = {"fu-1": "fu-2", "fu-2": "fu-1"}[request.function_id]
            request.function_id = other
            with pytest.raises(InvalidError, match=r"use the `modal (server|function)` commands"):
                await ask(method, request, CLIENT)
            request.function_id = "fu-none"
            with pytest.raises(NotFoundError):
                await ask(method, request, CLIENT)

    run(tmp_path, scenario)


def test_impossible_times_are_refused(tmp_path: Path) -> None:
    async def scenario(_home: Home, _tasks: TaskService, ask: Ask) -> None:
        for method, request in requests():
            if not hasattr(request, "since"):
                continue
            for since in (Timestamp(seconds=-1), Timestamp(seconds=2**62), request.until):
                request.since.CopyFrom(since)
                with pytest.raises(InvalidError):
                    await ask(method, request, CLIENT)

    run(tmp_path, scenario)


def test_containers_in_a_time(tmp_path: Path) -> None:
    async def scenario(home: Home, tasks: TaskService, ask: Ask) -> None:
        def made(task_id: str, function_id: str = "fu-1") -> None:
            tasks.created(
                TaskRecord(
                    task_id=task_id,
                    function_id=function_id,
                    app_id="ap-1",
                    node_id="no-1",
                    enqueued_at=home.clock.now(),
                )
            )

        for task_id in ("ta-ended", "ta-failed", "ta-lives", "ta-comes"):
            made(task_id)
        made("ta-other", "fu-2")
        home.clock.offset = 10
        for task_id in ("ta-ended", "ta-failed", "ta-lives"):
            tasks.started(task_id, home.clock.now())
        home.clock.offset = 20
        tasks.finished("ta-ended")
        tasks.finished("ta-failed", failed=True)
        request = api_pb2.FunctionGetTimeRangeStatsRequest(function_id="fu-1", **SPAN)
        found = await ask("FunctionGetTimeRangeStats", request, CLIENT)
        assert found.container_total_count == 4
        assert (found.container_started_count, found.container_error_count) == (3, 1)
        assert found.container_creating_at_end_count == 1
        (median, *_) = found.container_percentile_stats["Startup time (s)"].percentiles
        assert median.value == pytest.approx(10.0, rel=0.011)
        request.until.CopyFrom(Timestamp(seconds=int(START) + 5))
        found = await ask("FunctionGetTimeRangeStats", request, CLIENT)
        assert (found.container_started_count, found.container_error_count) == (0, 0)
        assert found.container_creating_at_end_count == 4
        request.since.CopyFrom(Timestamp(seconds=int(START) + 60))
        request.until.CopyFrom(Timestamp(seconds=int(START) + 120))
        found = await ask("FunctionGetTimeRangeStats", request, CLIENT)
        assert found.container_total_count == 2
        request.container_id = "ta-other"
        with pytest.raises(NotFoundError, match="ta-other"):
            await ask("FunctionGetTimeRangeStats", request, CLIENT)

    run(tmp_path, scenario)


def test_what_containers_used(tmp_path: Path) -> None:
    """Those that ended, by what was kept of them; those that run, by what their nodes say."""

    async def scenario(_home: Home, tasks: TaskService, ask: Ask) -> None:
        def task(number: int) -> TaskRecord:
            return TaskRecord(
                task_id=f"ta-{number}",
                function_id="fu-1",
                app_id="ap-1",
                node_id="no-1",
                enqueued_at=START,
            )

        for number in (1, 2):
            tasks.created(task(number))
            tasks.started(f"ta-{number}", START)
        tasks.used("ta-1", [UsageSample(START, 5.0, 2**30), UsageSample(START + 60, 65.0, 2**30)])
        tasks.finished("ta-1")
        request = api_pb2.FunctionGetMetricsRequest(
            function_id="fu-1", groups=["cpu", "memory"], bucket_secs=3600, **SPAN
        )
        answer = await ask("FunctionGetMetrics", request)
        found = {each.name: sum(point.value for point in each.points) for each in answer.series}
        assert [*found] == ["cpu_cores_mean", "cpu_cores_max", "memory_mean", "memory_max"]
        assert (found["cpu_cores_max"], found["memory_max"]) == (1.0, 1.0)
        assert found["cpu_cores_mean"] > 0

    run(tmp_path, scenario)
