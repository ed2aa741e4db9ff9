"""Which containers may put data into a call."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from modal_proto import api_pb2

from homeport.calls.rpc import CallsRpc
from homeport.calls.streams import DataStreams
from homeport.kernel.errors import PermissionDeniedError
from homeport.rpc.context import ClientIdentity, Context, Identity, TaskIdentity

CALL = SimpleNamespace(call_id="fc-1", app_id="ap-own", exchange=None)


def put(identity: Identity) -> None:
    """One chunk of a generator into ``CALL``."""
    calls = SimpleNamespace(find=lambda call_id: CALL if call_id == CALL.call_id else None)
    unused = cast(Any, None)
    rpc = CallsRpc(cast(Any, calls), DataStreams(), unused, unused, unused)
    request = api_pb2.FunctionCallPutDataRequest(function_call_id="fc-1")
    request.data_chunks.add(index=1, data=b"data")
    context = Context("FunctionCallPutDataOut", "1", identity, "1.6.4", 3, "")
    asyncio.run(rpc.FunctionCallPutDataOut(request, context))


def test_a_container_of_the_calls_app_may() -> None:
    put(TaskIdentity("ta-1", "ap-own", "main"))


def test_a_container_of_another_app_may_not() -> None:
    with pytest.raises(PermissionDeniedError, match="not a call of this container's app"):
        put(TaskIdentity("ta-2", "ap-other", "main"))


def test_who_is_no_container_may_not() -> None:
    with pytest.raises(PermissionDeniedError, match="for containers only"):
        put(ClientIdentity("ak-1"))
