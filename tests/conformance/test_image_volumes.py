"""Volumes mounted while an image is built."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks

PROGRAM = "image_volumes"


def test_what_steps_wrote_is_committed(checks: Checks, client: Client) -> None:
    expected = {"by-function.txt": "weights"}
    if client.release >= (1, 2):
        expected["by-command.txt"] = "from a command"
    assert checks.value("stored") == expected


def test_the_image_has_what_steps_copied_and_no_trace_of_the_mount(
    checks: Checks, client: Client
) -> None:
    expected = ["/srv/by-function.txt", "/marked"] if client.release >= (1, 2) else ["/marked"]
    found = checks.value("look")
    assert [path for path in found if path != "/models"] == expected


@pytest.mark.since("1.2.0")
def test_a_failed_step_leaves_what_it_wrote(checks: Checks) -> None:
    assert "exit code 3" in checks.error("failing")["message"]
    assert checks.value("stored_by_failing") == "kept"
