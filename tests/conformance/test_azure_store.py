"""Contents in Azure's blob storage, as Azurite speaks it. By hand: npm installs 190 MB for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conformance.harness.azurite import ACCOUNT, KEY, NEEDS, Azurite
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.server import server_with

pytestmark = pytest.mark.skipif(not NEEDS, reason="needs Node.js with npm")


def test_all_that_is_large_goes_there_and_comes_back(client: Client, tmp_path: Path) -> None:
    with Azurite(tmp_path) as azurite:
        azurite.create("contents")
        environ = {
            "HOMEPORT_BLOB_STORE": "az://contents/homeport",
            "HOMEPORT_BLOB_STORE_OPTIONS": f"endpoint={azurite.url}",
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        }
        with server_with(tmp_path / "home", environ) as server:
            checks = Runner(server, tmp_path).checks(client, "object_store")
            assert checks.value("large") == [True, True]
            assert checks.value("mapped") == [True] * 4
            for version in ("v1", "v2"):
                assert all(checks.value(f"{version}_read").values())
                assert checks.value(f"{version}_inside") == [True, True]
            assert checks.value("dict") is True
            done = server.homeport("volume", "fsck", "--json", timeout_s=120)
            assert json.loads(done.stdout)["damages"] == [], done.stderr
            found = json.loads(server.homeport("doctor", "--json").stdout)
            assert [check["state"] for check in found if check["name"] == "object store"] == ["ok"]
            blobs = server.home / "blobs"
            assert not [path for path in blobs.rglob("*") if path.is_file()]
