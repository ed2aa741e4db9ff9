"""A server or a node is killed under many sandboxes: those that can survive do, nothing is left.

``HOMEPORT_CHAOS_SANDBOXES`` says how many.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.harness.server import Server

from homeport.node.leaks import find_leaks

COUNT = int(os.environ.get("HOMEPORT_CHAOS_SANDBOXES", "100"))
LOAD = Path(__file__).with_name("sandbox_crowd.py")
START_S = 120.0 + 2 * COUNT
END_S = 300.0 + 2 * COUNT

pytestmark = [pytest.mark.root, pytest.mark.timeout(2 * (START_S + END_S) + 300)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for both tests; afterwards nothing of it may be left."""
    named = os.environ.get("HOMEPORT_TEST_HOME")
    server = Server(Path(named) if named else tmp_path_factory.mktemp("homeport"))
    server.start()
    try:
        yield server
    finally:
        server.stop()
    assert not find_leaks(server.home)


def pid_of(server: Server, part: str) -> int:
    """0 while it is not there."""
    return int(json.loads(server.homeport("status", "--json").stdout).get(f"{part}_pid") or 0)


def killed(server: Server, folder: Path, *parts: str) -> dict[str, Any]:
    """What the crowd saw while these parts were killed one after the other."""
    log = folder / "crowd.log"
    environ = {**os.environ, **server.environment(), "MODAL_CONFIG_PATH": "/nonexistent"}
    with log.open("wb") as output:
        load = subprocess.Popen(
            [sys.executable, str(LOAD), str(folder), str(COUNT)],
            env=environ,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + START_S
        while "all run" not in log.read_text():
            assert load.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.1)
        assert len(json.loads((folder / "running").read_text())) == COUNT
        for part in parts:
            before = pid_of(server, part)
            server.kill(part)
            while pid_of(server, part) in (0, before):
                assert time.monotonic() < deadline + END_S, server.tail()
                time.sleep(0.1)
        (folder / "killed").touch()
        assert load.wait(END_S) == 0, log.read_text()[-4000:]
    finally:
        load.kill()
        load.wait()
    return json.loads((folder / "seen.json").read_text())


def test_a_killed_server_is_not_noticed(server: Server, tmp_path: Path) -> None:
    seen = killed(server, tmp_path, "server", "server")
    assert not (wrong := [one for one in seen["outcomes"] if one["result"] is not True]), wrong
    assert set(seen["ends"]) == {7, 137}
    assert seen["left"] == []
    assert seen["new"] == 0


def test_a_killed_node_is_reported(server: Server, tmp_path: Path) -> None:
    seen = killed(server, tmp_path, "node")
    assert [one for one in seen["outcomes"] if one["result"] is True] == []
    assert seen["ends"] == [137] * COUNT
    assert seen["left"] == []
    assert seen["new"] == 0
    assert all("The sandbox was lost" in reason for reason in seen["reasons"]), seen["reasons"]
