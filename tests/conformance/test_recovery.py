"""Killing the server or the node loses no input and no result. Runs after all other tests."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.server import Server

pytestmark = pytest.mark.newest


@pytest.mark.parametrize("part", ["server", "node"])
def test_killed_under_a_map(runner: Runner, client: Client, server: Server, part: str) -> None:
    started = runner.start(client, "recovery.py")
    started.wait_for(lambda output: "well on its way" in output)
    server.kill(part)
    checks = started.checks()
    assert checks.value("map") == list(range(150))
    assert checks.value("spawned") == [0, 10, 20, 30, 40, 50]
    assert checks.value("afterwards") == 7


def test_restart_keeps_deployed_apps(runner: Runner, client: Client, server: Server) -> None:
    from tests.conformance.harness.programs import PROGRAMS

    name = "kept-over-a-restart"
    file = str(PROGRAMS / "deployed.py")
    runner.cli(client, "deploy", "--name", name, file).succeeded()
    server.restart()
    checks = runner.checks(client, "deployed_caller", name, script=True)
    assert checks.value("function") == 42
    runner.cli(client, "app", "stop", name, "--yes").succeeded()
