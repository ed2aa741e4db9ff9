"""Everything goes wrong under load, by seed: no call is lost or falsely failed, nothing is left.

``make chaos`` runs it for half an hour; ``HOMEPORT_CHAOS_S`` and ``HOMEPORT_CHAOS_SEED`` say how
long and with what, ``HOMEPORT_CHAOS_DATABASE=postgresql`` that the server works on a PostgreSQL.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from tests.chaos.disturbing import Clock, Disk, Disturbances
from tests.chaos.fuzzing import memory_bytes
from tests.conformance.harness.lossy import PatientProxy
from tests.conformance.harness.postgres import PostgreSQL
from tests.conformance.harness.server import Server

from homeport.node.leaks import find_leaks

SECONDS = float(os.environ.get("HOMEPORT_CHAOS_S", "20"))
SEED = os.environ.get("HOMEPORT_CHAOS_SEED", "1")
DATABASE = os.environ.get("HOMEPORT_CHAOS_DATABASE", "sqlite")
LOAD = Path(__file__).with_name("chaos_load.py")
START_S = 300.0
END_S = 180.0
"""What is under way when the last thing went wrong has that long to come to its end."""
MEMORY_BYTES_MAX = 500 * 2**20
GROWTH_MIB_MAX = 32.0
"""Of the median of the last third over that of the first: what is kept on purpose, results and
positions in logs, is some MiB in half an hour."""
SAMPLES_MIN = 60
"""Fewer say nothing about growth: caches fill up, and every kill begins anew."""
SETTINGS = {"HOMEPORT_HOUSEKEEPING_INTERVAL_S": "20"}
"""What nothing refers to any more is deleted in the midst of it."""
SANDBOXES_AT_ONCE = 2
TRACES_S = 60.0
"""What is late is given that much more, to see whether it hangs."""
AHEAD_S = 400.0
"""More than the clock was ever set to: what is scheduled is due then."""


@pytest.mark.root
@pytest.mark.timeout(SECONDS * 1.5 + START_S + END_S + 200)
def test_nothing_is_lost(tmp_path: Path) -> None:
    again = f"HOMEPORT_CHAOS_SEED={SEED} HOMEPORT_CHAOS_S={SECONDS:g} "
    again += f"HOMEPORT_CHAOS_DATABASE={DATABASE} make chaos"
    print(f"to repeat it: {again}")
    with (
        Disk(tmp_path / "disk") as disk,
        PostgreSQL() if DATABASE == "postgresql" else contextlib.nullcontext() as database,
    ):
        _run(tmp_path, disk, database, again)


def _run(tmp_path: Path, disk: Disk, database: PostgreSQL | None, again: str) -> None:
    clock = Clock(tmp_path / "clock")
    environ = {**clock.environ, **SETTINGS}
    if database is not None:
        environ["HOMEPORT_DATABASE_URL"] = database.create()
    server = Server(disk.folder / "home", environ)
    server.start()
    disturbances = Disturbances(server, SEED, clock, disk, database)
    memory: dict[str, list[float]] = defaultdict(list)
    code = -1
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
                    _take_memory(server, memory)
                disturbances.set_clock(AHEAD_S)
                (tmp_path / "stop").touch()
                try:
                    code = load.wait(END_S)
                except subprocess.TimeoutExpired:
                    load.send_signal(signal.SIGUSR1)  # it tells what it waits for
                    load.wait(TRACES_S)
                    raise
            finally:
                load.kill()
                load.wait()
    finally:
        print("\n".join(disturbances.happened))
        print(dict(Counter(disturbances.happened)))
        try:
            if code != 0:
                _keep_traces(server, tmp_path)
        finally:
            server.stop()
    assert code == 0, (tmp_path / "load.log").read_text()[-4000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    print({name: found for name, found in seen.items() if name != "wrong"})
    growth = {part: _growth(part, samples) for part, samples in memory.items()}
    assert not seen["wrong"], f"{json.dumps(seen['wrong'], indent=1)}\nto repeat it: {again}"
    assert all(seen["done"].values()), seen["done"]
    assert not find_leaks(server.home)
    assert seen["ended"] <= SANDBOXES_AT_ONCE * disturbances.deadly, again
    assert seen["lines_lost"] <= disturbances.deadly, again
    assert max(memory["server"]) < MEMORY_BYTES_MAX / 2**20
    assert max(growth.values()) <= GROWTH_MIB_MAX, f"{memory}\nto repeat it: {again}"


def _keep_traces(server: Server, folder: Path) -> None:
    """What was logged and recorded until something was wrong."""
    (folder / "status.json").write_text(server.homeport("status", "--json").stdout)
    with contextlib.suppress(shutil.Error):  # what went meanwhile
        shutil.copytree(server.home, folder / "home", ignore=shutil.ignore_patterns("node", "run"))


def _wait_for(file: Path, load: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while not file.exists():
        assert load.poll() is None, (file.parent / "load.log").read_text()[-4000:]
        assert time.monotonic() < deadline, (file.parent / "load.log").read_text()[-4000:]
        time.sleep(0.1)


def _take_memory(server: Server, memory: dict[str, list[float]]) -> None:
    """MiB of each part that is there."""
    status = json.loads(server.homeport("status", "--json").stdout)
    for part in ("server", "node"):
        with contextlib.suppress(FileNotFoundError, TypeError, KeyError, ValueError):
            memory[part].append(round(memory_bytes(int(status[f"{part}_pid"])) / 2**20, 1))


def _growth(part: str, samples: list[float]) -> float:
    """From the first third to the last, by their medians, in MiB; 0 of too few."""
    third = len(samples) // 3
    if not third:
        return 0.0
    first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
    print(f"{part}: {first} MiB in the first third, {last} in the last, at most {max(samples)}")
    return last - first if len(samples) >= SAMPLES_MIN else 0.0
