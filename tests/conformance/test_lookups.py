"""Objects found and made by other names than ``from_name``: old clients' ways, dashboards."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

PREFIXES = {"dict": "di-", "queue": "qu-", "volume": "vo-"}


@pytest.fixture
def found(runner: Runner, client: Client) -> Checks:
    """What the program reported."""
    return runner.checks(client, "lookups", script=True)


@pytest.mark.parametrize("kind", PREFIXES)
def test_lookup(found: Checks, client: Client, kind: str) -> None:
    if f"{kind}_lookup" not in found.lines:
        assert client.release >= (1, 2), "old clients have it"
        pytest.skip("newer clients have no lookup")
    assert found.value(f"{kind}_lookup") == [True, PREFIXES[kind]]
    error = found.error(f"{kind}_lookup_missing")
    assert "not found in environment 'main'" in error["message"]


@pytest.mark.since("1.3")
@pytest.mark.parametrize("kind", PREFIXES)
def test_dashboard(found: Checks, kind: str) -> None:
    if f"{kind}_dashboard" not in found.lines:
        pytest.skip("this client has no dashboards of objects")
    assert found.value(f"{kind}_dashboard") is True


def test_network_file_system(found: Checks, client: Client) -> None:
    if client.release < (1, 1):
        assert found.value("nfs_lookup") == [True, "sv-"]
    assert found.value("nfs_created") == [True, "1"]
    assert "not found" in found.error("nfs_gone")["message"]


def test_created_for_good(found: Checks, client: Client) -> None:
    if "volume_created" not in found.lines:
        assert client.release >= (1, 1, 2), "old clients have it"
        pytest.skip("newer clients have objects.create")
    assert found.value("volume_created") is True
    assert "already exists" in found.error("volume_created_again")["message"]


def test_partition_keys(found: Checks) -> None:
    for check in ("key_too_long", "key_empty"):
        assert found.error(check)["type"] == "InvalidError"
    assert found.value("key") == "k" * 64
