"""The server is killed again and again under Dict and Queue load: nothing is lost or doubled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.killing import KILLS, kill_under_load
from tests.conformance.harness.postgres import PostgreSQL

LOAD = Path(__file__).with_name("storage_load.py")


@pytest.mark.timeout(120 + 10 * KILLS)
def test_kills_under_load(tmp_path: Path) -> None:
    seen, repeated = kill_under_load(tmp_path, LOAD, pauses_s=(0.3, 2.5), end_s=120)
    nothing_is_lost(seen, repeated)


@pytest.mark.timeout(180 + 10 * KILLS)
def test_kills_under_load_on_postgresql(tmp_path: Path) -> None:
    with PostgreSQL() as postgres:
        environ = {"HOMEPORT_DATABASE_URL": postgres.create()}
        seen, repeated = kill_under_load(
            tmp_path, LOAD, pauses_s=(0.3, 2.5), end_s=120, environ=environ
        )
    nothing_is_lost(seen, repeated)


def nothing_is_lost(seen: dict[str, Any], repeated: bool) -> None:
    assert repeated
    assert seen["dict_operations"] > KILLS
    assert len(seen["put"]) > KILLS
    twice = [value for value, count in Counter(seen["got"]).items() if count > 1]
    assert twice == []
    assert set(seen["got"]) == set(seen["put"])
    assert seen["wrong"] == []
    assert seen["kept"] == seen["expected"]
