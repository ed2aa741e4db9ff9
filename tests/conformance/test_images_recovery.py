"""Builds that are cut off: SIGKILL of a node or of everything, then the same build again."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.server import Server

PROGRAM = "interrupted_build.py"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory):
    """A server of its own: it is killed."""
    home = tmp_path_factory.mktemp("killed")
    server = Server(home)
    server.start()
    runner = Runner(server, tmp_path_factory.mktemp("clients"))
    yield server, runner
    server.stop()


def _forget_interruption(home: Path) -> None:
    shutil.rmtree(home / "node" / "builder" / "cache" / "mounts", ignore_errors=True)


@pytest.mark.newest
@pytest.mark.parametrize("part", ["node", "everything"])
def test_a_killed_build_is_made_whole_by_the_next(
    own: tuple[Server, Runner], client: Client, part: str
) -> None:
    server, runner = own
    _forget_interruption(server.home)
    (runner.folder / "part").write_text(part)  # makes it another image
    started = runner.start(client, PROGRAM)
    started.wait_for(lambda output: "it waits" in output)
    if part == "node":
        status = json.loads(server.homeport("status", "--json").stdout)
        os.kill(status["node_pid"], signal.SIGKILL)  # the build waits for a node and goes on
        assert started.checks().value("look") == ["first", "whole"]
    else:
        server.crash()
        server.start()
        started.interrupt()
        checks = runner.checks(client, PROGRAM.removesuffix(".py"))
        assert checks.value("look") == ["first", "whole"]
    assert server.containers("bd-") == set()
    layers = server.home / "node" / "layers"
    assert [path.name for work in layers.glob(".work.*") for path in work.iterdir()] == []
