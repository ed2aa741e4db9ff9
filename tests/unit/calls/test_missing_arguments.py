"""Inputs whose arguments are said to be in a blob that is not there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from modal_proto import api_pb2

from homeport.calls.rpc import CallsRpc
from homeport.calls.service import InputSpec
from homeport.calls.streams import DataStreams
from homeport.kernel.errors import NotFoundError
from homeport.rpc.context import ClientIdentity, Context

CONTEXT = Context("FunctionPutInputs", "1", ClientIdentity("ak-1"), "1.6.4", 1, "")


class Blobs:
    """Has ``bl-there`` only."""

    async def require(self, blob_ids: set[str]) -> None:
        for blob_id in blob_ids - {"bl-there"}:
            raise NotFoundError(f"blob {blob_id} does not exist")


def put(*blob_ids: str) -> list[str]:
    """The blobs of the inputs that were taken."""
    taken: list[str] = []

    async def put_inputs(call_id: str, specs: Sequence[InputSpec]) -> list[object]:
        taken.extend(spec.args_blob_id for spec in specs)
        return []

    calls = cast(Any, SimpleNamespace(put_inputs=put_inputs))
    unused = cast(Any, None)
    rpc = CallsRpc(calls, DataStreams(), unused, unused, cast(Any, Blobs()))
    request = api_pb2.FunctionPutInputsRequest(function_call_id="fc-1")
    for index, blob_id in enumerate(blob_ids):
        request.inputs.add(idx=index).input.args_blob_id = blob_id
    asyncio.run(rpc.FunctionPutInputs(request, CONTEXT))
    return taken


def test_arguments_that_are_there_are_taken() -> None:
    assert put("bl-there", "", "bl-there") == ["bl-there", "", "bl-there"]


def test_missing_arguments_are_refused_before_any_container_gets_them() -> None:
    with pytest.raises(NotFoundError, match="bl-gone does not exist"):
        put("bl-there", "bl-gone")
