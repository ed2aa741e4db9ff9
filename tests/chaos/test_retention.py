"""What was done long ago takes no room: each kind of record goes, what has a name stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.chaos.disturbing import Clock
from tests.conformance.harness.server import server_with

PROGRAM = Path(__file__).with_name("retention_load.py")
LONG_S = 40 * 86400.0
"""Longer than anything is kept."""
PATIENCE_S = 90.0
SETTINGS = {
    "HOMEPORT_HOUSEKEEPING_INTERVAL_S": "1",
    "HOMEPORT_RESULT_RETENTION_S": "100",  # looked at each tenth of it
}
AGEING = {
    "calls": "",
    "inputs": "",
    "outputs": "",
    "log_entries": "time_ns < :long_ago * 1e9",
    "history_packs": "",
    "blobs": "",
    "sandboxes": "",
    "tasks": "finished_at > 0 AND finished_at < :long_ago",
    "apps": "name <> 'retention-deployed'",
}
"""What is forgotten, by table: all of it, or those rows."""


@pytest.mark.root
@pytest.mark.timeout(400)
def test_what_ended_long_ago_is_forgotten(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    environ = {**clock.environ, **SETTINGS}
    with server_with(tmp_path / "home", environ) as server:
        engine = sa.create_engine(f"sqlite:///{server.home / 'homeport.db'}")

        def program(part: str) -> str:
            known = {**server.environment(), "MODAL_CONFIG_PATH": "/nonexistent"}
            done = subprocess.run(
                [sys.executable, str(PROGRAM), part],
                env={**os.environ, **known},
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert done.returncode == 0, done.stdout + done.stderr + server.tail()
            return done.stdout

        def rows() -> dict[str, int]:
            with engine.connect() as connection:
                return {
                    table: connection.execute(
                        sa.text(f"SELECT count(*) FROM {table} WHERE {rule or 'true'}"),
                        {"long_ago": time.time() + LONG_S / 2} if ":" in rule else {},
                    ).scalar_one()
                    for table, rule in AGEING.items()
                }

        def contents() -> int:
            """Bytes of the large inputs, results and values."""
            return sum(
                path.stat().st_size for path in server.home.glob("blobs/**/*") if path.is_file()
            )

        program("much")
        before, bytes_before = rows(), contents()
        print(before, bytes_before)
        assert all(before.values()), before
        clock.jump(LONG_S)
        deadline = time.monotonic() + PATIENCE_S
        while any(left := rows().values()) or contents() > bytes_before - 10 * 2**20:
            assert time.monotonic() < deadline, (rows(), contents(), bytes_before)
            time.sleep(0.2)
        print(left, contents())
        assert "all is there" in program("kept")
        engine.dispose()
