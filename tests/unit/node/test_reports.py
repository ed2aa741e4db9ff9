"""When a task's reports leave."""

from __future__ import annotations

import asyncio

from homeport.link.messages import STATUS_SUCCESS, InputsStarted, OutputItem, Outputs, Result
from homeport.node.reports import BYTES_MAX, OUTPUTS_MAX, PATIENT_S, Reports


def _output(number: int, size: int = 1) -> OutputItem:
    result = Result(STATUS_SUCCESS, data=b"x" * size)
    return OutputItem(f"in-{number}", 0, result, 1, 0.0, 0.0)


async def _sent(*steps: object) -> list[object]:
    """What leaves when outputs (a number: with patience, a size: without) are reported."""
    sent: list[object] = []
    reports = Reports("ta-1", sent.append, sent.append)
    for step in steps:
        if isinstance(step, str):
            reports.started([(step, 0)], 1.0, patient=True)
        elif isinstance(step, float):
            await asyncio.sleep(step)
        elif isinstance(step, tuple):
            reports.finished([_output(*step)])
        else:
            assert isinstance(step, int)
            reports.finished([_output(step)], patient=True)
    return sent


def _ids(message: object) -> list[str]:
    assert isinstance(message, Outputs)
    return [item.input_id for item in message.items]


def test_an_awaited_output_leaves_at_once_and_takes_the_waiting_ones_along() -> None:
    (message,) = asyncio.run(_sent(1, 2, (3,)))
    assert _ids(message) == ["in-1", "in-2", "in-3"]


def test_patient_outputs_leave_by_themselves() -> None:
    assert asyncio.run(_sent(1, 2)) == []
    (message,) = asyncio.run(_sent(1, 2, 20 * PATIENT_S))
    assert _ids(message) == ["in-1", "in-2"]


def test_nothing_to_report_hurries_nothing() -> None:
    sent: list[object] = []

    async def scenario() -> None:
        reports = Reports("ta-1", sent.append, sent.append)
        reports.started([("in-2", 0)], 1.0, patient=True)
        reports.finished([_output(1)], patient=True)
        reports.finished([])  # what a delivery of inputs comes to
        assert sent == []
        reports.flush()

    asyncio.run(scenario())
    assert [type(message) for message in sent] == [InputsStarted, Outputs]


def test_full_messages_and_large_outputs_do_not_wait() -> None:
    first, *_ = asyncio.run(_sent(*range(OUTPUTS_MAX + 1)))
    assert len(_ids(first)) == OUTPUTS_MAX
    (large,) = asyncio.run(_sent((1, BYTES_MAX + 1)))
    assert _ids(large) == ["in-1"]


def test_a_start_is_told_unless_its_output_was() -> None:
    (message,) = asyncio.run(_sent("in-1", (1,)))
    assert _ids(message) == ["in-1"]
    started, outputs = asyncio.run(_sent("in-1", "in-2", (1,)))
    assert isinstance(started, InputsStarted)
    assert started.inputs == [("in-2", 0)]
    assert _ids(outputs) == ["in-1"]
