"""The server is killed again and again under Dict and Queue load: nothing is lost or doubled.

``HOMEPORT_CHAOS_KILLS`` says how often (in all), ``HOMEPORT_CHAOS_SEED`` repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.conformance.harness.bare import BareServer
from tests.conformance.harness.lossy import PatientProxy

LOAD = Path(__file__).with_name("storage_load.py")
KILLS = int(os.environ.get("HOMEPORT_CHAOS_KILLS", "6"))
SEED = os.environ.get("HOMEPORT_CHAOS_SEED", "1")


@pytest.mark.timeout(120 + 10 * KILLS)
def test_kills_under_load(tmp_path: Path) -> None:
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
                    time.sleep(moments.uniform(0.3, 2.5))
                    server.kill()
                    server.start()
                (tmp_path / "stop").touch()
                code = load.wait(120)
            finally:
                load.kill()
                load.wait()
            assert code == 0, (tmp_path / "load.log").read_text()[-4000:]
            assert proxy.repeated
    finally:
        server.stop()
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["dict_operations"] > KILLS
    assert len(seen["put"]) > KILLS
    twice = [value for value, count in Counter(seen["got"]).items() if count > 1]
    assert twice == []
    assert set(seen["got"]) == set(seen["put"])
    assert seen["wrong"] == []
    assert seen["kept"] == seen["expected"]
