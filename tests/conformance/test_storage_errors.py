"""Each error case of storage in the protocol that public methods do not come to by themselves."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

KINDS = {
    "INVALID_ARGUMENT": "InvalidError",
    "NOT_FOUND": "NotFoundError",
    "ALREADY_EXISTS": "AlreadyExistsError",
    "FAILED_PRECONDITION": "ConflictError",
}


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    return runner.checks(client, "storage_errors", script=True)


INVALID = [
    "dict_several_if_missing",
    "dict_long_name",
    "queue_bad_entry",
    "queue_get_long_key",
    "queue_len_long_key",
    "queue_clear_long_key",
    "queue_next_long_key",
    "queue_past_ttl",
    "queue_long_name",
    "volume_short_hash",
    "volume_too_few_blocks",
    "volume_too_many_blocks",
    "volume_content_not_sent",
    "volume_no_path",
    "volume_leading_out",
    "mount_wrong_hash",
    "mount_no_hash",
    "volume_long_name",
    "volume_empty_name",
    "volume_copy_nothing",
    "secret_long_name",
    "nfs_long_name",
    "environment_empty",
    "environment_long",
    "environment_like_id",
    "environment_dash",
]
MISSING = [
    "dict_heartbeat_missing",
    "dict_of_another_kind",
    "dict_malformed_id",
    "dict_list_nowhere",
    "queue_heartbeat_missing",
    "queue_of_another_kind",
    "queue_list_nowhere",
    "volume_heartbeat_missing",
    "volume_of_another_kind",
    "volume_list_nowhere",
    "blob_missing",
    "secret_delete_missing",
    "secret_list_nowhere",
    "nfs_heartbeat_missing",
    "nfs_get_missing",
    "nfs_list_nowhere",
    "environment_delete_missing",
    "environment_update_missing",
]


def said(checks: Checks, client: Client, check: str, status: str) -> None:
    """The exception of that status; clients before 1.3 show gRPC's own."""
    error = checks.error(check)
    if client.release >= (1, 3):
        assert KINDS[status] in error["bases"], error["traceback"]
    else:
        assert f"Status.{status}:" in error["message"], error["traceback"]
    assert len(error["message"]) > len("Status.") + len(status)


@pytest.mark.parametrize("check", INVALID)
def test_what_cannot_be(checks: Checks, client: Client, check: str) -> None:
    said(checks, client, check, "INVALID_ARGUMENT")


@pytest.mark.parametrize("check", MISSING)
def test_what_is_not_there(checks: Checks, client: Client, check: str) -> None:
    said(checks, client, check, "NOT_FOUND")


def test_what_is_there_already(checks: Checks, client: Client) -> None:
    said(checks, client, "environment_again", "ALREADY_EXISTS")


def test_the_default_environment_is_kept(checks: Checks, client: Client) -> None:
    said(checks, client, "environment_delete_default", "FAILED_PRECONDITION")


@pytest.mark.since("1.3.5")
def test_an_update_of_a_secret_that_is_not_there(checks: Checks, client: Client) -> None:
    said(checks, client, "secret_update_missing", "NOT_FOUND")


@pytest.mark.since("1.6.0")
def test_information_about_a_secret_that_is_not_there(checks: Checks, client: Client) -> None:
    said(checks, client, "secret_info_missing", "NOT_FOUND")


def test_what_was_refused_changed_nothing(checks: Checks) -> None:
    assert checks.value("dict_untouched") == 0
    assert checks.value("queue_untouched") == 0
    assert checks.value("volume_untouched") == []


def test_urls_of_blocks(checks: Checks) -> None:
    statuses, content = checks.value("block_requests")
    assert statuses.pop("right") == 200
    assert all(400 <= status < 500 for status in statuses.values()), statuses
    assert content is True
