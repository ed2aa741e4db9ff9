"""The client's protobuf messages as link structs and back."""

from __future__ import annotations

from collections.abc import Iterable

from modal_proto import api_pb2

from homeport.link.messages import InputItem, OutputItem, Result

SERVICE = "modal.client.ModalClient"
PREFIX = f"/{SERVICE}/"

_METHODS = api_pb2.DESCRIPTOR.services_by_name["ModalClient"].methods


_OLDER_STREAMS = ("ContainerFilesystemExecGetOutput",)
"""Of clients up to 1.6.0; it is not in the protocol any more."""


def _streams() -> dict[str, bool]:
    # Types of the descriptor's methods are not in the stubs of every protobuf release.
    streams = {PREFIX + method.name: bool(method.server_streaming) for method in _METHODS}
    return {PREFIX + name: True for name in _OLDER_STREAMS} | streams


STREAMS: dict[str, bool] = _streams()
"""Every path of the protocol, and whether it answers with a stream."""


def grant_response(items: Iterable[InputItem]) -> bytes:
    """``FunctionGetInputsResponse`` with these inputs."""
    response = api_pb2.FunctionGetInputsResponse()
    for item in items:
        answer = response.inputs.add()
        answer.input_id = item.input_id
        answer.function_call_id = item.call_id
        answer.retry_count = item.retry_count
        answer.function_call_invocation_type = item.invocation_type  # type: ignore[assignment]
        body = answer.input
        if item.args_blob_id:
            body.args_blob_id = item.args_blob_id
        else:
            body.args = item.args or b""
        body.data_format = item.data_format  # type: ignore[assignment]
        body.final_input = item.final
        if item.method_name:
            body.method_name = item.method_name
    return response.SerializeToString()


def kill_switch_response() -> bytes:
    """``FunctionGetInputsResponse`` that ends the container's work loop."""
    response = api_pb2.FunctionGetInputsResponse()
    response.inputs.add().kill_switch = True
    return response.SerializeToString()


def cancel_response(input_ids: list[str]) -> bytes:
    """``ContainerHeartbeatResponse`` that cancels these inputs."""
    response = api_pb2.ContainerHeartbeatResponse()
    response.cancel_input_event.input_ids.extend(input_ids)
    return response.SerializeToString()


def output_items(body: bytes) -> list[OutputItem]:
    """The outputs of a ``FunctionPutOutputsRequest``."""
    request = api_pb2.FunctionPutOutputsRequest.FromString(body)
    return [
        OutputItem(
            input_id=item.input_id,
            retry_count=item.retry_count,
            result=result(item.result),
            data_format=item.data_format,
            started_at=item.input_started_at,
            finished_at=item.output_created_at,
        )
        for item in request.outputs
    ]


def result(proto: api_pb2.GenericResult) -> Result:
    """A ``GenericResult`` as the link carries it."""
    payload = proto.WhichOneof("data_oneof")
    return Result(
        status=proto.status,
        exception=proto.exception,
        traceback=proto.traceback,
        serialized_tb=proto.serialized_tb,
        tb_line_cache=proto.tb_line_cache,
        data=proto.data if payload == "data" else None,
        data_blob_id=proto.data_blob_id if payload == "data_blob_id" else "",
    )


def task_result(body: bytes) -> Result:
    """The result of a ``TaskResultRequest``."""
    return result(api_pb2.TaskResultRequest.FromString(body).result)


def arguments_of(arguments: bytes, task_id: str) -> bytes:
    """``ContainerArguments`` for another task; equal bytes for what is otherwise equal."""
    message = api_pb2.ContainerArguments.FromString(arguments)
    message.task_id = task_id
    return message.SerializeToString(deterministic=True)
