"""A machine short of memory: new work is refused with a sentence, what runs goes on, it recovers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conformance.harness.server import server_with

PROGRAM = Path(__file__).with_name("memory_load.py")
SPARE_MB = 600
"""So much of what is available may be taken before the server refuses."""


@pytest.mark.root
@pytest.mark.timeout(400)
def test_short_of_memory(tmp_path: Path) -> None:
    available = re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())
    assert available is not None
    reserve = int(available[1]) // 1024 - SPARE_MB
    if reserve <= 0:
        pytest.skip(f"needs a machine with more than {SPARE_MB} MiB of free memory")
    environ = {"HOMEPORT_MEMORY_RESERVE_MB": str(reserve)}
    with server_with(tmp_path / "home", environ) as server:
        known = {**server.environment(), "MODAL_CONFIG_PATH": "/nonexistent"}
        done = subprocess.run(
            [sys.executable, str(PROGRAM)],
            env={**os.environ, **known},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout + done.stderr + server.tail()
    assert f"{reserve} MiB are kept for what runs already" in done.stdout
    assert "what ran went on" in done.stdout
    assert "taken again" in done.stdout
