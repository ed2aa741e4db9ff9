"""Hostile code in a container: its node and the server answer, the work of others comes out right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.chaos.fuzzing import said
from tests.conformance.harness.server import Server

from homeport.node.leaks import find_leaks

REQUESTS = int(os.environ.get("HOMEPORT_FUZZ_REQUESTS", "4000")) // 4
SEED = os.environ.get("HOMEPORT_FUZZ_SEED", "1")
PROGRAM = Path(__file__).with_name("container_fuzz.py")


@pytest.mark.root
@pytest.mark.timeout(600)
def test_others_work_comes_out_right(tmp_path: Path) -> None:
    server = Server(tmp_path / "home")
    server.start()
    try:
        command = [sys.executable, "-m", "modal", "run", str(PROGRAM)]
        done = subprocess.run(
            [*command, "--seed", SEED, "--requests", str(REQUESTS)],
            env={**os.environ, **server.environment(), "MODAL_CONFIG_PATH": "/nonexistent"},
            capture_output=True,
            text=True,
            timeout=400,
        )
    finally:
        server.stop()
    assert "others' work came out right" in done.stdout, done.stdout + done.stderr
    logs = b"".join(path.read_bytes() for path in server.home.glob("logs/*.log"))
    assert not list(said(logs + server.log.read_bytes()))
    assert not find_leaks(server.home)
