"""Log entries as messages of the client's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from modal_proto import api_pb2

from homeport.logs.model import Done, Entry, Event, Filter, QueueProgress, TaskState

LogRequest = api_pb2.AppGetLogsRequest | api_pb2.AppFetchLogsRequest | api_pb2.AppCountLogsRequest


def batches(event: Event) -> Iterator[api_pb2.TaskLogsBatch]:
    """The messages that carry ``event``; entries of different tasks never share one."""
    if isinstance(event, list):
        yield from entry_batches(event)
    elif isinstance(event, Done):
        yield api_pb2.TaskLogsBatch(app_done=True)
    else:
        yield _ephemeral_batch(event)


def entry_batches(entries: Sequence[Entry]) -> Iterator[api_pb2.TaskLogsBatch]:
    """Batches in order; each ``entry_id`` resumes after that batch."""
    for source, group in groupby(entries, key=_source):
        task_id, function_id, root_function_id, image_id = source
        members = list(group)
        yield api_pb2.TaskLogsBatch(
            entry_id=str(members[-1].id),
            task_id=task_id,
            function_id=function_id,
            root_function_id=root_function_id,
            image_id=image_id,
            items=[_item(entry) for entry in members],
        )


def _source(entry: Entry) -> tuple[str, str, str, str]:
    return entry.task_id, entry.function_id, entry.root_function_id, entry.image_id


def _item(entry: Entry) -> api_pb2.TaskLogs:
    return api_pb2.TaskLogs(
        data=entry.data,
        timestamp=entry.time_ns / 1e9,
        timestamp_ns=entry.time_ns,
        file_descriptor=api_pb2.FileDescriptor.ValueType(entry.fd),
        function_call_id=entry.call_id,
        input_id=entry.input_id,
        container_id=entry.task_id,
    )


def _ephemeral_batch(event: TaskState | QueueProgress) -> api_pb2.TaskLogsBatch:
    if isinstance(event, TaskState):
        state = api_pb2.TaskLogs(task_state=api_pb2.TaskState.ValueType(event.state))
        return api_pb2.TaskLogsBatch(
            task_id=event.task_id, function_id=event.function_id, items=[state]
        )
    progress = api_pb2.TaskProgress(
        len=event.length,
        pos=event.position,
        progress_type=api_pb2.FUNCTION_QUEUED,
        description=event.description,
    )
    return api_pb2.TaskLogsBatch(
        function_id=event.function_id, items=[api_pb2.TaskLogs(task_progress=progress)]
    )


def filter_of(request: LogRequest) -> Filter:
    """The filters that the three requests share."""
    is_stream = isinstance(request, api_pb2.AppGetLogsRequest)
    return Filter(
        task_id=request.task_id,
        function_id=request.function_id,
        variant_id=request.parametrized_function_id,
        call_id=request.function_call_id,
        input_id=request.input_id if is_stream else "",
        fd=request.file_descriptor if is_stream else request.source,
        search=request.search_text,
    )
