"""``modal serve``: files that change are taken over by the running app."""

from __future__ import annotations

import time
from pathlib import Path

from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import PROGRAMS, Runner

WAIT_S = 60.0


def containers(runner: Runner, client: Client) -> set[str]:
    rows = runner.rows(client, "container", "list")
    return {row["container_id"] for row in rows if "conformance-served" in row["app_name"]}


def test_serve(runner: Runner, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "served.py"
    file.write_text((PROGRAMS / "served.py").read_text())
    served = runner.start_cli(client, "serve", str(file))
    try:
        served.wait_for(lambda output: "edition ONE in a container" in output)
        first = containers(runner, client)
        assert first
        time.sleep(1)  # for the watcher to have looked at the file
        file.write_text(file.read_text().replace("ONE", "TWO"))
        served.wait_for(lambda output: "edition TWO in a container" in output, WAIT_S)
        deadline = time.monotonic() + WAIT_S
        while (now := containers(runner, client)) & first and time.monotonic() < deadline:
            time.sleep(0.3)
        assert now
        assert not now & first
        rows = [r for r in runner.rows(client, "app", "list") if "served" in r["description"]]
        alive = [row["state"] for row in rows if row["state"] != "stopped"]  # other clients' are
        assert alive == ["ephemeral"]
    finally:
        served.interrupt(presses=3)
    deadline = time.monotonic() + WAIT_S
    while containers(runner, client) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert not containers(runner, client)
