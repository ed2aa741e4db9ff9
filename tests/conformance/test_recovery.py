"""Killing the server or the node loses no input and no result. Runs after all other tests."""

from __future__ import annotations

import json

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import PROGRAMS, Runner, Started
from tests.conformance.harness.server import Server

from homeport.node.leaks import find_leaks

pytestmark = pytest.mark.newest


def nothing_is_lost(started: Started) -> None:
    checks = started.checks()
    assert checks.value("map") == list(range(150))
    assert checks.value("spawned") == [0, 10, 20, 30, 40, 50]
    assert checks.value("afterwards") == 7


@pytest.mark.parametrize("part", ["server", "node"])
def test_killed_under_a_map(runner: Runner, client: Client, server: Server, part: str) -> None:
    started = runner.start(client, "recovery.py")
    started.wait_for(lambda output: "well on its way" in output)
    server.kill(part)
    nothing_is_lost(started)


def test_stopped_and_started_under_a_map(runner: Runner, client: Client, server: Server) -> None:
    started = runner.start(client, "recovery.py")
    started.wait_for(lambda output: "well on its way" in output)
    server.stop()
    assert not find_leaks(server.home)
    server.start()
    nothing_is_lost(started)


def test_killed_altogether_under_a_map(runner: Runner, client: Client, server: Server) -> None:
    started = runner.start(client, "recovery.py")
    started.wait_for(lambda output: "well on its way" in output)
    server.crash()
    orphans = server.containers()
    assert orphans
    server.start()
    assert not orphans & server.containers()
    nothing_is_lost(started)


def test_each_line_is_told_once_though_the_server_is_killed(
    runner: Runner, client: Client, server: Server
) -> None:
    started = runner.start(client, "talkative.py", "--lines", "1000")
    for number in (100, 400, 700):
        started.wait_for(lambda output, line=f"line {number}\n": line in output)
        server.kill("server")
    told = started.ended(240.0).succeeded().stdout
    assert [line for line in told.splitlines() if line.startswith("line ")] == [
        f"line {number}" for number in range(1000)
    ]


def test_restart_keeps_deployed_apps(runner: Runner, client: Client, server: Server) -> None:
    name = "kept-over-a-restart"
    file = str(PROGRAMS / "deployed.py")
    runner.cli(client, "deploy", "--name", name, file).succeeded()
    server.restart()
    checks = runner.checks(client, "deployed_caller", name, script=True)
    assert checks.value("function") == 42
    runner.cli(client, "app", "stop", name, *client.yes).succeeded()


def test_calls_stay_in_the_history(runner: Runner, client: Client, server: Server) -> None:
    """Whose results the client had just seen when the server was killed, and each once."""
    name = "history-of-a-killed-server"
    file = str(PROGRAMS / "deployed.py")
    runner.cli(client, "deploy", "--name", name, file).succeeded()
    done = runner.script(client, "history_killed.py", name, str(server.pid)).succeeded()
    call_id = done.stdout.partition("CALL ")[2].strip()
    asked = runner.cli(client, "function", "calls", f"{name}/double", "--tail", "100", "--json")
    rows = json.loads(asked.succeeded().stdout)
    assert [row["status"] for row in rows] == ["success"] * 21
    assert [row["function_call_id"] for row in rows].count(call_id) == 1
    runner.cli(client, "app", "stop", name, *client.yes).succeeded()
