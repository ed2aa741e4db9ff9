"""As ``test_volume_kills``, with the contents in a bucket: what was acknowledged is in it, whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chaos.killing import KILLS, kill_under_load
from tests.chaos.test_volume_kills import LOAD, check
from tests.conformance.harness.s3 import ObjectStore

BUCKET_KILLS = max(3, KILLS // 2)


@pytest.mark.timeout(240 + 20 * BUCKET_KILLS)
def test_kills_while_volumes_in_a_bucket_change(tmp_path: Path) -> None:
    with ObjectStore(tmp_path) as store:
        store.create("contents")
        environ = {
            "HOMEPORT_BLOB_STORE": "s3://contents",
            "HOMEPORT_BLOB_STORE_OPTIONS": f"endpoint={store.url},region=us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        seen, _ = kill_under_load(
            tmp_path,
            LOAD,
            pauses_s=(0.5, 3.0),
            end_s=180,
            check=lambda server: check(server, environ),
            kills=BUCKET_KILLS,
            environ=environ,
        )
    assert seen["changes"] > BUCKET_KILLS
    assert seen["wrong"] == []
