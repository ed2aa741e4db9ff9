"""Stores of different machines agree: the same chain is the same layers, and what one exports the
other need not build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import PROGRAMS, Runner
from tests.conformance.harness.server import Server

pytestmark = pytest.mark.newest


class Machine:
    """An installation with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(folder / "home")
        self.server.start()
        self.runner = Runner(self.server, folder)

    def run(self, client: Client) -> object:
        """What a function in an image with RUNs and a function step finds."""
        report = self.runner.folder / "report.jsonl"
        environ = {"REBUILT_PART": "make", "CONFORMANCE_REPORT": str(report)}
        self.runner.cli(client, "run", str(PROGRAMS / "rebuilt.py"), environ=environ).succeeded()
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        return next(line.get("value", line) for line in lines if "seconds" in line)

    def images(self) -> dict[str, list[str]]:
        """The layers of each image."""
        done = self.server.homeport("image", "ls", "--json")
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return {row["image_id"]: row["layers"] for row in rows}

    def made(self) -> set[str]:
        """When each layer was made here: what was built again is another."""
        records = (self.server.home / "node" / "layers").glob("*.json")
        return {
            f"{record.stem} {json.loads(record.read_text())['created_at']}" for record in records
        }


def test_chains_are_the_same_layers_everywhere(tmp_path: Path, client: Client) -> None:
    machines: list[Machine] = []
    whole = ["bread with salt", "with salt"]
    try:
        for name in ("first", "second"):
            machines.append(Machine(tmp_path / name))
            assert machines[-1].run(client) == whole
        first, second = (machine.images() for machine in machines)
        assert first == second
        assert len(first) > 1

        last = max(first, key=lambda image_id: len(first[image_id]))
        archive = tmp_path / "image.tar"
        done = machines[0].server.homeport("image", "export", last, str(archive), timeout_s=300)
        assert done.returncode == 0, done.stderr

        third = Machine(tmp_path / "third")
        machines.append(third)
        done = third.server.homeport("image", "import", str(archive), timeout_s=300)
        assert done.returncode == 0, done.stderr
        before = third.made()
        assert third.run(client) == whole
        assert third.made() == before
        assert third.images().items() <= first.items()
    finally:
        for machine in machines:
            machine.server.stop()
