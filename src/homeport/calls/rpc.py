"""RPC handlers of calls, inputs, outputs and their data channels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.apps.service import AppService
from homeport.blobs.service import BlobService
from homeport.calls.model import Call, CallType, Cursor, Invocation
from homeport.calls.service import CallService, InputSpec, unknown_call
from homeport.calls.streams import Chunk, DataStreams
from homeport.calls.wire import cursor_of, data_chunk, entry_id, input_specs, output_item
from homeport.functions.service import FunctionService
from homeport.functions.wire import retry_policy_message
from homeport.kernel import ids
from homeport.kernel.errors import (
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
    UnimplementedError,
)
from homeport.kernel.numbers import member, wait_s
from homeport.link.messages import (
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    STATUS_TIMEOUT,
)
from homeport.rpc.context import Context

POLL_MAX_S = 60.0
"""The longest a poll is held; clients ask for 55 s."""


class CallsRpc:
    """Invocations: open a call, put inputs, poll outputs, cancel; generators' data channels."""

    def __init__(
        self,
        calls: CallService,
        streams: DataStreams,
        functions: FunctionService,
        apps: AppService,
        blobs: BlobService,
    ) -> None:
        self._calls = calls
        self._streams = streams
        self._functions = functions
        self._apps = apps
        self._blobs = blobs

    async def FunctionMap(
        self, request: api_pb2.FunctionMapRequest, ctx: Context
    ) -> api_pb2.FunctionMapResponse:
        record = self._functions.get(request.function_id)
        spec = record.require_spec()
        self._apps.require_live(record.app_id)
        call = await self._calls.create(
            function_id=record.function_id,
            app_id=record.app_id,
            type_=member(
                CallType, request.function_call_type or CallType.UNARY, "function_call_type"
            ),
            invocation=member(
                Invocation,
                request.function_call_invocation_type or Invocation.SYNC,
                "function_call_invocation_type",
            ),
            parent_input_id=request.parent_input_id,
            inputs=await self._specs(request.pipelined_inputs),
            key=ctx.idempotency_key,
        )
        response = api_pb2.FunctionMapResponse(
            function_call_id=call.call_id, function_call_jwt=call.call_id
        )
        if spec.retry_policy is not None:
            response.retry_policy.CopyFrom(retry_policy_message(spec.retry_policy))
        for item in request.pipelined_inputs:
            input_id = call.inputs[item.idx].input_id
            response.pipelined_inputs.add(idx=item.idx, input_id=input_id, input_jwt=input_id)
        return response

    async def FunctionPutInputs(
        self, request: api_pb2.FunctionPutInputsRequest, ctx: Context
    ) -> api_pb2.FunctionPutInputsResponse:
        specs = await self._specs(request.inputs)
        items = await self._calls.put_inputs(request.function_call_id, specs)
        response = api_pb2.FunctionPutInputsResponse()
        for item in items:
            response.inputs.add(idx=item.idx, input_id=item.input_id, input_jwt=item.input_id)
        return response

    async def _specs(self, items: Sequence[api_pb2.FunctionPutInputsItem]) -> list[InputSpec]:
        """The inputs, with arguments that are there: no container can go on from missing ones."""
        specs = input_specs(items)
        await self._blobs.require({spec.args_blob_id for spec in specs if spec.args_blob_id})
        return specs

    async def FunctionFinishInputs(
        self, request: api_pb2.FunctionFinishInputsRequest, ctx: Context
    ) -> Empty:
        await self._calls.close(request.function_call_id)
        return Empty()

    async def FunctionGetOutputs(
        self, request: api_pb2.FunctionGetOutputsRequest, ctx: Context
    ) -> api_pb2.FunctionGetOutputsResponse:
        call = self._calls.find(request.function_call_id)
        if call is None:
            return _gone(request)
        timeout_s = wait_s(request.timeout, POLL_MAX_S)
        if request.HasField("start_idx"):
            outputs, unfinished = await self._calls.outputs_between(
                call.call_id, request.start_idx, request.end_idx, timeout_s
            )
            cursor = Cursor()
        elif request.clear_on_success and timeout_s == 0:  # a map says that it has everything
            self._clear(call)
            return api_pb2.FunctionGetOutputsResponse()
        else:
            outputs, cursor, unfinished = await self._calls.outputs_after(
                call.call_id, cursor_of(request.last_entry_id), timeout_s
            )
        if any(output.result.status != STATUS_SUCCESS for output in outputs):
            await self._streams.read_out(call.call_id)
        if outputs and request.clear_on_success:
            self._clear(call)
        return api_pb2.FunctionGetOutputsResponse(
            outputs=[output_item(output) for output in outputs],
            last_entry_id=entry_id(cursor),
            num_unfinished_inputs=unfinished,
        )

    def _clear(self, call: Call) -> None:
        self._calls.clear(call.call_id)
        self._streams.finish(call.call_id)

    async def FunctionCallFromId(
        self, request: api_pb2.FunctionCallFromIdRequest, ctx: Context
    ) -> api_pb2.FunctionCallFromIdResponse:
        call = self._calls.get(request.function_call_id)
        response = api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.call_id, num_inputs=len(call.inputs)
        )
        response.metadata.app_id = call.app_id
        response.metadata.function_id = call.function_id
        return response

    async def FunctionCallCancel(
        self, request: api_pb2.FunctionCallCancelRequest, ctx: Context
    ) -> Empty:
        await self._calls.cancel(
            request.function_call_id, terminate_containers=request.terminate_containers
        )
        return Empty()

    async def FunctionCallGetInfo(
        self, request: api_pb2.FunctionCallGetInfoRequest, ctx: Context
    ) -> api_pb2.FunctionCallGetInfoResponse:
        call = self._calls.get(request.function_call_id)
        response = api_pb2.FunctionCallGetInfoResponse()
        info = response.info
        info.function_call_id = call.call_id
        info.created_at = call.created_at
        info.total_inputs = len(call.inputs)
        info.pending_inputs.total = call.unfinished
        for output in call.outputs:
            status = output.result.status
            if status == STATUS_SUCCESS:
                info.succeeded_inputs.total += 1
            elif status == STATUS_TIMEOUT:
                info.timeout_inputs.total += 1
            elif status == STATUS_TERMINATED:
                info.cancelled_inputs.total += 1
            else:
                info.failed_inputs.total += 1
        return response

    async def FunctionGetCallGraph(
        self, request: api_pb2.FunctionGetCallGraphRequest, ctx: Context
    ) -> api_pb2.FunctionGetCallGraphResponse:
        response = api_pb2.FunctionGetCallGraphResponse()
        pending = [self._calls.get(request.function_call_id)]
        while pending:
            call = pending.pop()
            record = self._functions.find(call.function_id)
            response.function_calls.add(
                function_call_id=call.call_id,
                parent_input_id=call.parent_input_id,
                function_name=record.tag if record else "",
            )
            for item in call.inputs.values():
                response.inputs.add(
                    input_id=item.input_id,
                    status=api_pb2.GenericResult.GenericStatus.ValueType(
                        item.output.result.status if item.output else 0
                    ),
                    function_call_id=call.call_id,
                    task_id=item.task_id,
                )
            pending.extend(
                self._calls.children_of({item.input_id for item in call.inputs.values()})
            )
        return response

    # ── data channels ───────────────────────────────────────────────────────────────────────

    async def FunctionCallPutDataOut(
        self, request: api_pb2.FunctionCallPutDataRequest, ctx: Context
    ) -> Empty:
        task = ctx.task
        chunks = [
            Chunk(chunk.index, chunk.data_format, chunk.data, chunk.data_blob_id)
            for chunk in request.data_chunks
        ]
        call = self._calls.find(request.function_call_id)
        if call is not None and call.app_id != task.app_id:
            raise PermissionDeniedError(f"{call.call_id} is not a call of this container's app")
        if call is not None and call.exchange is not None:
            if call.inputs[0].task_id == task.task_id:  # not of an attempt that was given up
                await call.exchange.put(chunks)
        elif call is not None:
            await self._streams.put(request.function_call_id, chunks)
        return Empty()

    async def FunctionCallGetDataIn(
        self, request: api_pb2.FunctionCallGetDataRequest, ctx: Context
    ) -> AsyncIterator[api_pb2.DataChunk]:
        task = ctx.task
        call = self._calls.get(request.function_call_id)
        if call.exchange is None or call.inputs[0].task_id != task.task_id:
            raise NotFoundError(f"{call.call_id} has no data for this container")
        async for chunk in call.exchange.messages(request.last_index):
            yield data_chunk(chunk)

    async def FunctionCallGetDataOut(
        self, request: api_pb2.FunctionCallGetDataRequest, ctx: Context
    ) -> AsyncIterator[api_pb2.DataChunk]:
        if not request.function_call_id:
            raise UnimplementedError("Homeport does not use the input plane")
        with self._calls.reader(request.function_call_id):
            async for chunk in self._streams.follow(request.function_call_id, request.last_index):
                yield data_chunk(chunk)


def _gone(request: api_pb2.FunctionGetOutputsRequest) -> api_pb2.FunctionGetOutputsResponse:
    """The answer about a call that is not known (any more).

    An empty one makes a client that only looks (``get(timeout=0)``) report expired outputs; one
    that waits would ask again at once, for as long as it waits, so it gets an error.
    """
    call_id = request.function_call_id
    if not call_id:
        raise InvalidError("FunctionGetOutputs names no function call")
    if not ids.is_id(call_id, ids.CALL):
        raise NotFoundError(f"{call_id!r} is not the id of a function call (they look like fc-… )")
    if request.timeout > 0:
        raise unknown_call(call_id)
    return api_pb2.FunctionGetOutputsResponse()
