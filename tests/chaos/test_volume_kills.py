"""The server is killed again and again while volumes change: no change is lost, none is half made.

``HOMEPORT_CHAOS_KILLS`` says how often (in all), ``HOMEPORT_CHAOS_SEED`` repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conformance.harness.bare import BareServer
from tests.conformance.harness.lossy import PatientProxy

LOAD = Path(__file__).with_name("volume_load.py")
KILLS = int(os.environ.get("HOMEPORT_CHAOS_KILLS", "6"))
SEED = os.environ.get("HOMEPORT_CHAOS_SEED", "1")


def check(server: BareServer) -> None:
    """What the server left behind when it was killed is whole."""
    files = [str(server.home / "homeport.db"), str(server.home / "blobs")]
    done = subprocess.run(
        [sys.executable, "-m", "homeport.volumes.fsck", *files], capture_output=True, check=True
    )
    assert json.loads(done.stdout)["damages"] == []


@pytest.mark.timeout(240 + 20 * KILLS)
def test_kills_while_volumes_change(tmp_path: Path) -> None:
    moments = random.Random(SEED)
    server = BareServer(tmp_path / "home")
    server.start()
    log = (tmp_path / "load.log").open("wb")
    try:
        with PatientProxy(int(server.url.rpartition(":")[2])) as proxy:
            server.reached_by = proxy.url
            load = subprocess.Popen(
                [sys.executable, str(LOAD), str(tmp_path), SEED],
                env={**os.environ, **server.environment(), "MODAL_CONFIG_PATH": "/nonexistent"},
                stdout=log,
                stderr=log,
            )
            try:
                for _ in range(KILLS):
                    time.sleep(moments.uniform(0.5, 3.0))
                    server.kill()
                    check(server)
                    server.start()
                (tmp_path / "stop").touch()
                code = load.wait(180)
            finally:
                load.kill()
                load.wait()
            assert code == 0, (tmp_path / "load.log").read_text()[-4000:]
    finally:
        server.stop()
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["changes"] > KILLS
    assert seen["wrong"] == []
    check(server)
