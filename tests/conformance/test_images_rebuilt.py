"""Images whose layers were lost are built again, also when the app that made them is long gone."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import PROGRAMS, Runner
from tests.conformance.harness.server import Server

RETENTION = {
    "HOMEPORT_RESULT_RETENTION_S": "1",
    "HOMEPORT_LOG_RETENTION_S": "1",
    "HOMEPORT_HOUSEKEEPING_INTERVAL_S": "0.5",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory):
    """A server of its own, that keeps next to nothing of apps that have ended."""
    server = Server(tmp_path_factory.mktemp("forgetful"), RETENTION)
    server.start()
    yield server, Runner(server, tmp_path_factory.mktemp("clients"))
    server.stop()


def _run(runner: Runner, client: Client, part: str) -> list[str]:
    path = str(PROGRAMS / "rebuilt.py")
    report = runner.folder / f"{part}.jsonl"
    environ = {"REBUILT_PART": part, "CONFORMANCE_REPORT": str(report)}
    runner.cli(client, "run", path, environ=environ).succeeded()
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    report.unlink()
    (line,) = (line for line in lines if "seconds" in line)
    assert "value" in line, line
    return line["value"]


def test_an_image_of_an_app_that_is_gone(own: tuple[Server, Runner], client: Client) -> None:
    server, runner = own
    whole = ["bread with salt", "with salt"]
    others = _apps(server.home)  # of other clients' images
    assert _run(runner, client, "make") == whole
    assert _run(runner, client, "use") == whole
    # that of the user goes, the maker's stays
    assert _until(lambda: _apps(server.home) == others + 1)
    server.stop()
    assert _lose_layers(server.home / "node" / "layers") >= 2
    server.start()
    assert _run(runner, client, "use") == whole
    # asked for anew, it is the newer app's: the older one may go
    assert _run(runner, client, "make") == whole
    assert _until(lambda: _apps(server.home) == others + 1)


def _apps(home: Path) -> int:
    with contextlib.closing(sqlite3.connect(home / "homeport.db")) as database:
        return int(database.execute("SELECT count(*) FROM apps").fetchone()[0])


def _until(condition: Callable[[], bool]) -> bool:
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.1)
    return False


def _lose_layers(layers: Path) -> int:
    """Delete those that are not of the base image; how many."""
    records = [record for record in layers.glob("*.json") if _is_ours(record)]
    for record in records:
        shutil.rmtree(record.with_suffix(""))
        record.unlink()
    return len(records)


def _is_ours(record: Path) -> bool:
    instruction = json.loads(record.read_text())["instruction"]
    return "TOPPING" in instruction or "run_function" in instruction or "bake" in instruction
