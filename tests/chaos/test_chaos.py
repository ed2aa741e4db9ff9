"""Everything goes wrong under load, by seed: no call is lost or falsely failed, nothing is left.

``make chaos`` runs it for half an hour; ``HOMEPORT_CHAOS_S`` and ``HOMEPORT_CHAOS_SEED`` say how
long and with what.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.chaos.disturbing import Clock, Disk, Disturbances
from tests.chaos.fuzzing import memory_bytes
from tests.conformance.harness.lossy import PatientProxy
from tests.conformance.harness.server import Server

from homeport.node.leaks import find_leaks

SECONDS = float(os.environ.get("HOMEPORT_CHAOS_S", "20"))
SEED = os.environ.get("HOMEPORT_CHAOS_SEED", "1")
LOAD = Path(__file__).with_name("chaos_load.py")
START_S = 300.0
END_S = 180.0
"""What is under way when the last thing went wrong has that long to come to its end."""
MEMORY_BYTES_MAX = 500 * 2**20


@pytest.mark.root
@pytest.mark.timeout(SECONDS * 1.5 + START_S + END_S + 200)
def test_nothing_is_lost(tmp_path: Path) -> None:
    again = f"HOMEPORT_CHAOS_SEED={SEED} HOMEPORT_CHAOS_S={SECONDS:g} make chaos"
    print(f"to repeat it: {again}")
    with Disk(tmp_path / "disk") as disk:
        _run(tmp_path, disk, again)


def _run(tmp_path: Path, disk: Disk, again: str) -> None:
    clock = Clock(tmp_path / "clock")
    server = Server(disk.folder / "home", clock.environ)
    server.start()
    disturbances = Disturbances(server, SEED, clock, disk)
    memory: list[int] = []
    try:
        with PatientProxy(int(server.url.rpartition(":")[2])) as proxy:
            environ = {**os.environ, **server.environment(), "MODAL_SERVER_URL": proxy.url}
            environ["MODAL_CONFIG_PATH"] = "/nonexistent"
            with (tmp_path / "load.log").open("wb") as log:
                load = subprocess.Popen(
                    [sys.executable, str(LOAD), str(tmp_path), SEED],
                    env=environ,
                    stdout=log,
                    stderr=log,
                )
            try:
                _wait_for(tmp_path / "begun", load)
                end = time.monotonic() + SECONDS
                while time.monotonic() < end and load.poll() is None:
                    disturbances.next()
                    memory.append(_memory(server))
                (tmp_path / "stop").touch()
                code = load.wait(END_S)
            finally:
                load.kill()
                load.wait()
    finally:
        print("\n".join(disturbances.happened))
        server.stop()
    assert code == 0, (tmp_path / "load.log").read_text()[-4000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    print(seen["done"])
    assert not seen["wrong"], f"{json.dumps(seen['wrong'], indent=1)}\nto repeat it: {again}"
    assert all(seen["done"].values()), seen["done"]
    assert not find_leaks(server.home)
    assert max(memory) < MEMORY_BYTES_MAX


def _wait_for(file: Path, load: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while not file.exists():
        assert load.poll() is None, (file.parent / "load.log").read_text()[-4000:]
        assert time.monotonic() < deadline, (file.parent / "load.log").read_text()[-4000:]
        time.sleep(0.1)


def _memory(server: Server) -> int:
    """Of the server process; 0 while it is not there."""
    try:
        return memory_bytes(server.pid)
    except (FileNotFoundError, TypeError, KeyError):
        return 0
