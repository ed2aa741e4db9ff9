"""The server is killed again and again while volumes change: no change is lost, none is half made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.chaos.killing import KILLS, kill_under_load
from tests.conformance.harness.bare import BareServer

LOAD = Path(__file__).with_name("volume_load.py")


def check(server: BareServer, environ: dict[str, str] | None = None) -> None:
    """What the server left behind when it was killed is whole."""
    command = [sys.executable, "-m", "homeport.volumes.fsck", str(server.home)]
    variables = {**os.environ, **(environ or {})}
    done = subprocess.run(command, capture_output=True, check=True, env=variables)
    assert json.loads(done.stdout)["damages"] == []


@pytest.mark.timeout(240 + 20 * KILLS)
def test_kills_while_volumes_change(tmp_path: Path) -> None:
    seen, _ = kill_under_load(tmp_path, LOAD, pauses_s=(0.5, 3.0), end_s=180, check=check)
    assert seen["changes"] > KILLS
    assert seen["wrong"] == []


@pytest.mark.root
@pytest.mark.timeout(500 + 30 * KILLS)
def test_kills_while_containers_commit(tmp_path: Path) -> None:
    load = Path(__file__).with_name("commit_load.py")
    seen, _ = kill_under_load(
        tmp_path, load, pauses_s=(0.5, 4.0), end_s=180, check=check, has_node=True
    )
    assert seen["commits"] > KILLS
    assert seen["wrong"] == []
