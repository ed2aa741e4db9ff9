"""RPC handlers of logs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final, Protocol

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.kernel.numbers import time_ns, wait_s
from homeport.logs import wire
from homeport.logs.model import Bucket, Filter, TaskRef
from homeport.logs.service import LogService
from homeport.logs.wire import LogRequest
from homeport.rpc.context import Context

_LATEST_NS: Final = 2**63 - 1
_DEFAULT_NS: Final = 86400 * 10**9
"""How far back a question without a start looks."""


class LogSubjects(Protocol):
    """What exists that has logs; answered by the features that own apps and tasks."""

    def has_app(self, app_id: str) -> bool:
        """Whether there is (or was) such an app."""
        ...

    async def find_task(self, task_id: str) -> TaskRef | None:
        """The app of a task and whether the task has ended; ``None`` if it is unknown."""
        ...

    async def task_of_sandbox(self, sandbox_id: str) -> str:
        """The task that a sandbox is. Raises ``NotFoundError``."""
        ...


class LogRpc:
    """``AppGetLogs``, ``AppFetchLogs`` and ``AppCountLogs``."""

    def __init__(self, service: LogService, subjects: LogSubjects) -> None:
        self._service = service
        self._subjects = subjects

    async def AppGetLogs(
        self, request: api_pb2.AppGetLogsRequest, ctx: Context
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        app_id, task, filter = await self._subject(request)
        events = self._service.follow(
            app_id,
            filter,
            after_id=_entry_id(request.last_entry_id),
            timeout_s=wait_s(request.timeout),
            task_finished=task is not None and task.finished,
        )
        async with aclosing(events):
            async for event in events:
                for batch in wire.batches(event):
                    yield batch

    async def AppFetchLogs(
        self, request: api_pb2.AppFetchLogsRequest, ctx: Context
    ) -> api_pb2.AppFetchLogsResponse:
        app_id, _, filter = await self._subject(request)
        since_ns, until_ns = _range_ns(request)
        entries = await self._service.fetch(
            app_id,
            filter,
            since_ns=since_ns,
            until_ns=until_ns,
            limit=request.limit,
        )
        return api_pb2.AppFetchLogsResponse(batches=wire.entry_batches(entries))

    async def AppCountLogs(
        self, request: api_pb2.AppCountLogsRequest, ctx: Context
    ) -> api_pb2.AppCountLogsResponse:
        app_id, _, filter = await self._subject(request)
        since_ns, until_ns = _range_ns(request)
        buckets = await self._service.count(
            app_id,
            filter,
            since_ns=since_ns,
            until_ns=until_ns,
            bucket_s=request.bucket_secs,
        )
        return api_pb2.AppCountLogsResponse(app_id=app_id, buckets=map(_bucket, buckets))

    async def _subject(self, request: LogRequest) -> tuple[str, TaskRef | None, Filter]:
        filter = wire.filter_of(request)
        if request.sandbox_id:
            task_id = await self._subjects.task_of_sandbox(request.sandbox_id)
            filter = msgspec.structs.replace(filter, task_id=task_id)
        task = await self._subjects.find_task(filter.task_id) if filter.task_id else None
        app_id = request.app_id or (task.app_id if task else "")
        if filter.task_id and not app_id:
            raise NotFoundError(f"Container {filter.task_id!r} not found")
        if not self._subjects.has_app(app_id):
            raise NotFoundError(f"App {app_id!r} not found")
        return app_id, task, filter


def _entry_id(text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise InvalidError(f"{text[:80]!r} is not an entry id of this server")
    return int(text)


def _range_ns(
    request: api_pb2.AppFetchLogsRequest | api_pb2.AppCountLogsRequest,
) -> tuple[int, int]:
    until = time_ns(request.until, "until") if request.HasField("until") else time.time_ns()
    since = time_ns(request.since, "since") if request.HasField("since") else until - _DEFAULT_NS
    return max(since, -_LATEST_NS), min(until, _LATEST_NS)


def _bucket(bucket: Bucket) -> api_pb2.AppCountLogsResponse.LogBucket:
    return api_pb2.AppCountLogsResponse.LogBucket(
        bucket_start_at=Timestamp(seconds=bucket.start),
        stdout_logs=bucket.stdout,
        stderr_logs=bucket.stderr,
        system_logs=bucket.system,
    )
