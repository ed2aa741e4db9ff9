"""Sidecar containers of sandboxes."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

SIDECAR_CHECKS = [
    (
        "life",
        [
            "ctr-",
            "given\n/opt\nmine\n",
            1,
            None,
            ["helper"],
            True,
            "NotFoundError",
            "AlreadyExistsError",
            "InvalidError",
            "text",
            137,
            [],
            [["helper", 137]],
            3,
            None,
        ],
    ),
    ("by_the_router", "word\n/data/\nkept\n"),
    ("files", "1\nnone\nwhole\n"),
    ("ends_with_the_sandbox", True),
    ("bad", [1, "NotFoundError", 1, "0\n"]),
    (
        "together",
        ["from db", "from web", "from main", "from main", "from web", "from db", 0],
    ),
]
"""What the program reports, whatever isolates the containers."""


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    """What the program reported."""
    if client.release < (1, 6, 4):
        pytest.skip("this client has no sidecars, or other names for them")
    return runner.checks(client, "sidecars", script=True)


@pytest.mark.parametrize(("check", "expected"), SIDECAR_CHECKS)
def test_sidecar(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected
