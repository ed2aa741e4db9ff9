"""Ephemeral Dicts and Queues live as long as their client says so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.conformance.harness.bare import BareServer
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[BareServer]:
    """A server that deletes ephemeral objects after three silent seconds."""
    server = BareServer(tmp_path / "home", {"HOMEPORT_EPHEMERAL_TIMEOUT_S": "3"})
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_heartbeats(impatient: BareServer, client: Client, tmp_path: Path) -> None:
    checks = Runner(impatient, tmp_path).checks(client, "ephemeral", "lives", script=True)
    for kind in ("dict", "queue"):
        assert checks.value(f"{kind}_beats") == 0
        assert "not found" in checks.value(f"{kind}_gone")


def test_a_client_that_dies(impatient: BareServer, client: Client, tmp_path: Path) -> None:
    done = Runner(impatient, tmp_path).script(client, "ephemeral.py", "dies")
    assert done.stdout.startswith("di-")
    engine = sa.create_engine(f"sqlite:///{impatient.home / 'homeport.db'}")

    def left() -> tuple[int, int]:
        with engine.connect() as connection:
            objects, entries = (
                connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()
                for table in ("objects", "dict_entries")
            )
            return objects, entries

    deadline = time.monotonic() + 60
    while left() != (0, 0):
        assert time.monotonic() < deadline, left()
        time.sleep(0.2)
    engine.dispose()
