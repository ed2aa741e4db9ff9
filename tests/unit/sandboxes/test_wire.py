from __future__ import annotations

import pytest
from modal_proto import api_pb2

from homeport.kernel.errors import InvalidError, UnimplementedError
from homeport.logs.model import Entry
from homeport.sandboxes.wire import log_batch, spec_of


def test_the_runtime_is_the_one_asked_for_or_refused() -> None:
    def runtime(asked: str) -> str:
        return spec_of(api_pb2.Sandbox(image_id="im-1", runtime=asked)).runtime

    assert [runtime(asked) for asked in ("", "runc", "gvisor", "runsc")] == [
        "",
        "",
        "runsc",
        "runsc",
    ]
    with pytest.raises(UnimplementedError, match="virtual machines"):
        runtime("vm")
    with pytest.raises(InvalidError, match="'magic'"):
        runtime("magic")


def test_what_goes_on_with_a_line_is_in_one_item_with_it() -> None:
    def entry(number: int, fd: int, data: str) -> Entry:
        names = dict.fromkeys(
            ("app_id", "function_id", "root_function_id", "image_id", "call_id", "input_id"), ""
        )
        return Entry(id=number, fd=fd, data=data, time_ns=number, task_id="ta-1", **names)

    texts = [(1, "a"), (1, "b\n"), (1, "c"), (2, "d"), (2, "e"), (1, "x" * 2_000_000), (1, "y")]
    batch = log_batch([entry(number, *text) for number, text in enumerate(texts, 1)])
    assert batch is not None
    assert batch.entry_id == "7"
    assert [(item.file_descriptor, item.data[:3], item.timestamp_ns) for item in batch.items] == [
        (1, "ab\n", 1),
        (1, "c", 3),
        (2, "de", 4),
        (1, "xxx", 6),
        (1, "y", 7),
    ]
