"""Functions whose containers use sandboxes."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    """What the program reported."""
    return runner.checks(client, "sandbox_inside", script=True)


def test_files_of_older_clients(checks: Checks, client: Client) -> None:
    if client.release >= (1, 6):
        pytest.skip("this client has another API for files")
    assert checks.value("files") == [
        ["line one\n", "line two\n"],
        "one",
        True,
        ["bytes", "text"],
        ["FileNotFoundError", "NotADirectoryError"],
        [True],
        False,
    ]


def test_images_and_sidecars(checks: Checks, client: Client) -> None:
    if client.release < (1, 6, 4):
        pytest.skip("this client does not have it")
    assert checks.value("images") == "from inside"
