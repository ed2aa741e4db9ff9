"""The server is killed again and again under Dict and Queue load: nothing is lost or doubled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.chaos.killing import KILLS, kill_under_load

LOAD = Path(__file__).with_name("storage_load.py")


@pytest.mark.timeout(120 + 10 * KILLS)
def test_kills_under_load(tmp_path: Path) -> None:
    seen, repeated = kill_under_load(tmp_path, LOAD, pauses_s=(0.3, 2.5), end_s=120)
    assert repeated
    assert seen["dict_operations"] > KILLS
    assert len(seen["put"]) > KILLS
    twice = [value for value, count in Counter(seen["got"]).items() if count > 1]
    assert twice == []
    assert set(seen["got"]) == set(seen["put"])
    assert seen["wrong"] == []
    assert seen["kept"] == seen["expected"]
