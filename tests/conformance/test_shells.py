"""``modal shell`` with everything it takes, on terminals and without; logs of sandboxes."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    """What the program reported."""
    return runner.checks(client, "shells", script=True)


def test_of_a_new_container(checks: Checks, runner: Runner) -> None:
    token = runner.server.environment()["MODAL_TOKEN_ID"]
    assert checks.value("plain") == ["42", token]
    assert checks.value("of_a_registry") == ["/usr/local/bin/python"]


def test_options(checks: Checks, client: Client) -> None:
    local = ["from here"] if client.release >= (1, 2) else []
    assert checks.value("options") == [["secret", "0", *local], "kept\n"]


def test_of_what_a_program_defines(checks: Checks) -> None:
    assert checks.value("of_a_function") == ["of the function, secret"]
    assert checks.value("of_a_method") == ["of the function"]


def test_on_a_terminal(checks: Checks) -> None:
    """Its size is the user's, Ctrl-C goes to what runs in it, and its end is the command's."""
    assert checks.value("interactive") == [0, 1]
    assert checks.value("attached") == 0


def test_of_a_functions_container(checks: Checks) -> None:
    assert checks.value("of_a_container") is True


@pytest.mark.since("1.2")
def test_of_an_image(checks: Checks) -> None:
    assert checks.value("of_an_image") == ["of the function"]


@pytest.mark.since("1.2")
def test_of_a_sandbox(checks: Checks) -> None:
    found, ends, texts = checks.value("of_a_sandbox")
    assert found == ["here"]
    assert 0 not in ends, texts
    assert "Traceback" not in "".join(texts)


@pytest.mark.since("1.6.4")
def test_of_a_sidecar(checks: Checks) -> None:
    found, code, text = checks.value("of_a_sidecar")
    assert found == ["of the function"]
    assert code != 0
    assert "none" in text


@pytest.mark.since("1.6.4")
def test_logs_of_a_sandbox(checks: Checks) -> None:
    assert checks.value("logs") == [
        ["line-300", "oops"],
        301,
        "line-1",
        True,
        [],
        ["oops"],
        "oops",
        ["oops"],
        301,
    ]
