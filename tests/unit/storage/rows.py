"""A row for tests that only need some table to write to."""

from __future__ import annotations


def row(name: str) -> dict[str, object]:
    """A call of that id."""
    return {
        "call_id": name,
        "function_id": "fu-1",
        "app_id": "ap-1",
        "type": 1,
        "invocation": 4,
        "parent_input_id": "",
        "created_at": 0.0,
        "is_closed": True,
        "cancelled": False,
    }
