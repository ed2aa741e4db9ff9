"""Containers that waited with the client imported are like those started from nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import PROGRAMS, Runner
from tests.conformance.harness.server import Server

PROGRAM = "templates.py"


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)
    return found


def waiting(server: Server) -> dict[int, str]:
    """Waiting containers and those that once were, by the pid of their init."""
    return server.inits("tp-")


def run(runner: Runner, client: Client, *arguments: str, **how: Any) -> dict[str, Any]:
    done = runner.modal_run(client, how.pop("program", PROGRAM), *arguments, **how).succeeded()
    found = json.loads(done.stdout.partition("SEEN ")[2].partition("\n")[0])
    found["output"] = done.output
    return found


def waited(runner: Runner, client: Client, *arguments: str, **how: Any) -> dict[str, Any]:
    """The first run whose container had waited: the one for the next task is made behind our back."""
    return until(lambda: (found := run(runner, client, *arguments, **how))["waited"] and found)


@pytest.fixture(scope="module")
def runner(waiting_runner: Runner) -> Runner:
    """A server that keeps containers waiting."""
    return waiting_runner


@pytest.fixture(scope="module")
def cold(runner: Runner, client: Client) -> dict[str, Any]:
    return run(runner, client)


def test_the_first_container_of_a_kind_starts_from_nothing(cold: dict[str, Any]) -> None:
    assert not cold["waited"]


def test_one_that_waited_is_like_it(runner: Runner, client: Client, cold: dict[str, Any]) -> None:
    first, second = waited(runner, client), waited(runner, client)
    for name in cold.keys() - {"waited", "task", "made up", "output"}:
        assert first[name] == second[name] == cold[name], name
    for one, other, third in zip(
        *(found["made up"] for found in (cold, first, second)), strict=True
    ):
        assert len({one, other, third}) == 3
    assert len({found["task"] for found in (cold, first, second)}) == 3
    for found in (first, second):
        assert f"printed by {found['task']}" in found["output"]
        assert found["old file"] is False
        assert found["forked"] == 6


def test_volumes_are_those_of_the_task(runner: Runner, client: Client) -> None:
    key = client.version
    run(runner, client, "--which", "stored", "--word", f"{key} one")
    seen = waited(runner, client, "--which", "stored", "--word", f"{key} two")
    assert seen["before"].startswith(key)
    assert run(runner, client, "--which", "stored", "--word", "x")["before"] == f"{key} two"


def test_classes(runner: Runner, client: Client) -> None:
    assert waited(runner, client, "--which", "class")["edition"] == 1


def test_timeouts(runner: Runner, client: Client) -> None:
    for _ in range(2):
        assert run(runner, client, "--which", "slow")["error"] == "FunctionTimeoutError"


def test_environments_are_not_shared(runner: Runner, client: Client, cold: dict[str, Any]) -> None:
    waited(runner, client)
    until(lambda: waiting(runner.server))
    name = f"apart-{client.version.replace('.', '-')}"
    runner.cli(client, "environment", "create", name).succeeded()
    other = run(runner, client, options=["--env", name])
    assert (other["waited"], other["environment"]) == (False, name)
    assert waited(runner, client, options=["--env", name])["environment"] == name
    assert waited(runner, client)["environment"] == cold["environment"]


def test_changed_code_is_another_kind(
    runner: Runner, client: Client, tmp_path: Path, cold: dict[str, Any]
) -> None:
    edited = tmp_path / PROGRAM
    text = (PROGRAMS / PROGRAM).read_text()
    shutil.copy(PROGRAMS / PROGRAM, edited)
    assert waited(runner, client, program=str(edited))["edition"] == 1
    edited.write_text(text.replace("EDITION = 1", "EDITION = 2"))
    changed = run(runner, client, program=str(edited))
    assert (changed["waited"], changed["edition"]) == (False, 2)
    assert waited(runner, client, program=str(edited))["edition"] == 2


def test_killing_those_that_wait_is_harmless(runner: Runner, client: Client) -> None:
    waited(runner, client)
    for pid in until(lambda: waiting(runner.server)):
        os.kill(pid, signal.SIGKILL)
    assert run(runner, client)["edition"] == 1
    waited(runner, client)


@pytest.mark.newest
def test_a_node_that_is_killed_takes_them_with_it(runner: Runner, client: Client) -> None:
    waited(runner, client)
    before = until(lambda: waiting(runner.server))
    runner.server.kill("node")
    until(lambda: not before.keys() & waiting(runner.server).keys())
    assert run(runner, client)["edition"] == 1
    waited(runner, client)
