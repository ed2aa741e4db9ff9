"""Conversions between the client's call messages and our records."""

from __future__ import annotations

from collections.abc import Iterable

from modal_proto import api_pb2

from homeport.calls.model import Cursor, Output
from homeport.calls.service import InputSpec
from homeport.calls.streams import Chunk
from homeport.kernel.errors import InvalidError
from homeport.link.messages import Result


def input_specs(items: Iterable[api_pb2.FunctionPutInputsItem]) -> list[InputSpec]:
    """The inputs of a request."""
    return [
        InputSpec(
            idx=item.idx,
            args=None if item.input.args_blob_id else item.input.args,
            args_blob_id=item.input.args_blob_id,
            data_format=item.input.data_format,
            method_name=item.input.method_name,
        )
        for item in items
    ]


def result_message(result: Result) -> api_pb2.GenericResult:
    """A result as clients read it."""
    message = api_pb2.GenericResult(
        status=api_pb2.GenericResult.GenericStatus.ValueType(result.status),
        exception=result.exception,
        traceback=result.traceback,
        serialized_tb=result.serialized_tb,
        tb_line_cache=result.tb_line_cache,
    )
    if result.data_blob_id:
        message.data_blob_id = result.data_blob_id
    elif result.data is not None:
        message.data = result.data
    return message


def output_item(output: Output) -> api_pb2.FunctionGetOutputsItem:
    """An output as clients read it. ``retry_count`` is 0: retries are the server's business."""
    return api_pb2.FunctionGetOutputsItem(
        result=result_message(output.result),
        idx=output.idx,
        input_id=output.input_id,
        data_format=api_pb2.DataFormat.ValueType(output.data_format),
        task_id=output.task_id,
        input_started_at=output.started_at,
        output_created_at=output.finished_at,
    )


def data_chunk(chunk: Chunk) -> api_pb2.DataChunk:
    """A piece of a generator's data channel as clients read it."""
    message = api_pb2.DataChunk(
        index=chunk.index, data_format=api_pb2.DataFormat.ValueType(chunk.data_format)
    )
    if chunk.blob_id:
        message.data_blob_id = chunk.blob_id
    else:
        message.data = chunk.data
    return message


def cursor_of(entry_id: str) -> Cursor:
    """The position in a map's outputs that ``last_entry_id`` stands for: clients begin at ``0-0``."""
    position, _, run = entry_id.partition("-")
    if not position:
        return Cursor()
    if not position.isdigit():
        raise InvalidError(f"last_entry_id {entry_id!r} is not one of this server's")
    return Cursor(int(position), run)


def entry_id(cursor: Cursor) -> str:
    return f"{cursor.position}-{cursor.run}"
