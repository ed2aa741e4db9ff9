"""Remote generators."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks

PROGRAM = "generators"
BIG = 3 * 1024 * 1024


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("sync", [0, 1, 2, 3, 4]),
        ("async", [0, 1, 2, 3, 4]),
        ("empty", []),
        ("many", 3000),
        ("in_order", True),
        ("big", [[BIG, 0], [BIG, 1], [BIG, 2]]),
        ("method", [0, 1, 2, 3]),
        ("aio", [0, 1, 2, 3]),
        ("streamed", True),
        ("abandoned", 3),
        ("after_abandoned", [0, 1]),
        ("container_is_free_again", [0, 0]),
    ],
)
def test_generator(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


@pytest.mark.parametrize("check", ["failing", "failing_async"])
def test_failure_comes_after_what_was_yielded(checks: Checks, client: Client, check: str) -> None:
    seen, message = checks.value(check)
    assert message == "stopped at 3"
    # In containers of the oldest clients, values that were not sent when the generator fails are lost.
    assert seen == [0, 1, 2] or (client.release < (1, 2) and seen == [0, 1, 2][: len(seen)])
