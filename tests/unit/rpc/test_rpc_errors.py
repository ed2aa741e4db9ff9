"""The table from errors to statuses."""

from __future__ import annotations

import base64

import pytest
from modal_proto import api_pb2

from homeport.kernel import errors
from homeport.kernel.errors import Code, ExhaustedError, HomeportError
from homeport.rpc.errors import status_error
from homeport.transport import dispatch
from homeport.transport.statuses import STATUS_OF_CODE

RETRIED_BY_CLIENTS = {
    dispatch.CANCELLED,
    dispatch.UNKNOWN,
    dispatch.DEADLINE_EXCEEDED,
    dispatch.INTERNAL,
    dispatch.UNAVAILABLE,
}


def test_every_code_has_a_status() -> None:
    assert set(STATUS_OF_CODE) == set(Code)


def test_only_what_may_succeed_later_is_retried_by_clients() -> None:
    retried = {code for code, status in STATUS_OF_CODE.items() if status in RETRIED_BY_CLIENTS}
    assert retried == {Code.UNAVAILABLE, Code.DEADLINE, Code.INTERNAL}


@pytest.mark.parametrize(
    "error", [errors.ConflictError(""), HomeportError(""), KeyError(), Exception()]
)
def test_a_message_is_never_empty(error: Exception) -> None:
    assert "r-1" in status_error(error, "DictGet", "r-1").message


def test_a_retry_hint_is_a_status_with_the_policy_as_detail() -> None:
    error = status_error(ExhaustedError("slow down", retry_after_s=0.5), "DictGet", "r-1")
    ((_, text),) = error.trailers
    status = api_pb2.RPCStatus.FromString(base64.b64decode(text + "=" * (-len(text) % 4)))
    assert (status.code, status.message) == (dispatch.RESOURCE_EXHAUSTED, "slow down")
    policy = api_pb2.RPCRetryPolicy()
    assert status.details[0].Unpack(policy)
    assert policy.retry_after_secs == 0.5


def test_a_limit_without_a_hint_has_no_details() -> None:
    assert status_error(ExhaustedError("full"), "QueuePut", "r-1").trailers == []
