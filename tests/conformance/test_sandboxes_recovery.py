"""Sandboxes outlive the server; what a node takes with it is reported. Runs after other tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import Server

pytestmark = pytest.mark.newest


def killed(runner: Runner, client: Client, server: Server, part: str) -> Checks:
    mark = Path(runner.folder) / "killed"
    mark.unlink(missing_ok=True)
    started = runner.start_script(client, "sandbox_recovery.py", part)
    started.wait_for(lambda output: "two sandboxes run" in output)
    server.kill(part)
    mark.touch()
    return started.checks()


def test_a_killed_server_is_not_noticed(runner: Runner, client: Client, server: Server) -> None:
    checks = killed(runner, client, server, "server")
    same, code, rest = checks.value("survived")
    assert same
    assert code == 9
    assert rest.endswith("got after\n")
    assert checks.value("terminated") == 137
    assert checks.value("ended") == [4]
    assert checks.value("new") == [0, "new\n"]


def test_a_killed_node_is_reported(runner: Runner, client: Client, server: Server) -> None:
    checks = killed(runner, client, server, "node")
    code, (kind, _) = checks.value("lost")
    assert code == 137
    assert kind == "NotFoundError"
    assert checks.value("terminated") == 137
    assert checks.value("ended") == [4]
    assert checks.value("new") == [0, "new\n"]
