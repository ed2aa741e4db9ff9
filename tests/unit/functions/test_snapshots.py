"""Which functions are prepared as far as their memory snapshot."""

from __future__ import annotations

import pytest
from modal_proto import api_pb2

from homeport.functions.wire import spec_of


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({}, False),
        ({"checkpointing_enabled": True}, True),
        ({"is_checkpointing_function": True}, False),
        ({"checkpointing_enabled": True, "is_auto_snapshot": True}, False),
    ],
    ids=["plain", "asked for", "of a container", "automatic"],
)
def test_memory_snapshots_are_taken_where_the_client_asks_for_them(
    fields: dict[str, bool], takes: bool
) -> None:
    function = api_pb2.Function(function_name="f", **fields)  # type: ignore[arg-type]
    spec = spec_of(function, function_id="fu-1", app_id="ap-1", client_version="1.6.4")
    assert spec.memory_snapshot is takes
