"""A caller that asks too fast is slowed down, not failed: its client waits as it is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chaos.test_full_disk import run
from tests.conformance.harness.bare import BareServer

pytestmark = pytest.mark.root

FAST = """
kept = modal.Dict.from_name("kept", create_if_missing=True)
for number in range(40):
    kept[number] = number
print(kept.len())
"""


def test_a_fast_caller_waits(tmp_path: Path) -> None:
    server = BareServer(tmp_path / "home", {"HOMEPORT_CALLER_REQUESTS_PER_S": "5"})
    server.start()
    try:
        assert run(server, FAST).strip() == "40"
    finally:
        server.stop()
    assert "caller_requests_per_s" in server.log.read_text()
