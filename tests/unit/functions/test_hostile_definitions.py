"""Definitions that no client would send."""

from __future__ import annotations

import math
import pickle

import pytest
from modal_proto import api_pb2

from homeport.functions.model import RETRY_DELAY_MAX_S, RetryPolicy
from homeport.functions.wire import canonical_params, spec_of
from homeport.kernel.errors import InvalidError


@pytest.mark.parametrize(
    "value",
    [
        ((), {"a": 2**70}),
        ((), {"a": -(2**70)}),
        (("a",), {1: 2, "b": 3}),
        ((), 5),
        "no pair at all",
    ],
)
def test_parameters_that_are_no_plain_values_are_compared_as_they_are(value: object) -> None:
    serialized = pickle.dumps(value)
    assert canonical_params(serialized) == serialized


def test_equal_parameters_stay_equal() -> None:
    first, second = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert canonical_params(pickle.dumps(((), first))) == canonical_params(
        pickle.dumps(((), second))
    )


@pytest.mark.parametrize("backoff", [math.nan, math.inf, -1.0])
def test_a_backoff_that_is_no_factor_is_refused(backoff: float) -> None:
    policy = api_pb2.FunctionRetryPolicy(retries=1, backoff_coefficient=backoff)
    function = api_pb2.Function(function_name="f", retry_policy=policy)
    with pytest.raises(InvalidError, match="backoff coefficient"):
        spec_of(function, function_id="fu-1", app_id="ap-1", client_version="1.6.4")


def test_delays_of_retries_have_a_bound() -> None:
    assert RetryPolicy(3000, 1.0, 10.0, 0.0).delay_s(2000) == RETRY_DELAY_MAX_S
    assert RetryPolicy(3000, 1.0, 10.0, 60.0).delay_s(2000) == 60.0
    assert RetryPolicy(3, 1.0, 2.0, 0.0).delay_s(3) == 4.0
