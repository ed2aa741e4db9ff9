"""Volumes in containers: commits, reloads, who sees what when, mount options."""

from __future__ import annotations

import errno

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

PROGRAM = "volumes_mounted"
OPEN_FILES = "there are open files preventing the operation"


def test_mounted_where_the_client_looks(checks: Checks) -> None:
    place, volume_id = checks.value("places")
    assert place == f"/__modal/volumes/{volume_id}"


def test_commit_is_seen_outside_and_in_new_containers(checks: Checks) -> None:
    assert checks.value("first") == ["base", "folder", "folder/inner"]
    assert checks.value("seen_from_outside") == [True, "inner"]
    assert checks.value("seen_in_a_new_container") is True


def test_others_commits_are_seen_after_a_reload(checks: Checks) -> None:
    assert checks.value("until_reload") == [True, True, True, "newer"]


def test_uploads_and_removals_from_outside_are_seen_after_a_reload(checks: Checks) -> None:
    assert checks.value("outside_upload") == "from outside"
    assert checks.value("removed_outside") is None


def test_every_kind_of_change_arrives(checks: Checks) -> None:
    inside, seen = checks.value("changes")
    expected = [
        "append",
        "empty",
        "file-then-folder",
        "link",
        "old",
        "renamed",
        "renamed/inner",
        "renamed/inner/added",
        "renamed/inner/y",
        "script",
        "sparse",
        "tree",
        "tree/fresh",
    ]
    assert inside == expected
    assert seen == {
        "tree": expected,
        "append": "some more",
        "script": "0o755",
        "link": ["append", "some more"],
        "old": 1e9,
        "sparse": [20 * 1024 * 1024, "in the middle", True],
        "file": "2",
    }


def test_reload_is_refused_while_files_are_open(checks: Checks) -> None:
    found = checks.value("open_files")
    assert found["open"] == f"{OPEN_FILES}: path open-file is open"
    assert found["cwd"] == f"{OPEN_FILES}: cwd is inside volume"
    assert found["child"] == f"{OPEN_FILES}: cwd of 'sleep 30' is inside volume"
    assert found["after"] == "x"


def test_reload_keeps_what_was_not_committed(checks: Checks) -> None:
    assert checks.value("keep_uncommitted") == ["kept", "kept"]


def test_read_only(checks: Checks) -> None:
    assert checks.value("read_only") == {"seen": "newer", "write": errno.EROFS, "after": "newer"}


@pytest.mark.since("1.4.3")
def test_sub_path(checks: Checks) -> None:
    assert checks.value("sub_path") == [[], ["note"], "two"]
    assert checks.value("sub_path_read_only") == [[], ["new/dir"]]


def test_two_volumes_in_one_container(checks: Checks) -> None:
    assert checks.value("two_volumes") == ["1", "2"]


def test_files_of_the_image_are_not_covered(checks: Checks) -> None:
    assert (
        "cannot mount a volume on the non-empty path /etc/ssl"
        in checks.error("over_files")["message"]
    )


def test_handles_in_containers_that_do_not_mount_the_volume(checks: Checks) -> None:
    same, message = checks.value("not_mounted")
    assert same is True
    assert "not mounted in this container" in message


def test_the_last_commit_of_a_file_counts(checks: Checks) -> None:
    names, is_one = checks.value("last_writes")
    assert names == ["last/0", "last/1", "last/2", "last/same"]
    assert is_one is True


def test_background_commits(checks: Checks) -> None:
    assert checks.value("background") is True


def test_what_a_killed_container_wrote_is_committed(checks: Checks) -> None:
    assert checks.value("killed") == [True, True]


def test_a_thousand_files(checks: Checks) -> None:
    assert checks.value("many") == [None, 1010]


@pytest.mark.since("1.1")
def test_commit_to_a_deleted_volume(checks: Checks) -> None:
    message, seen = checks.value("commit_to_deleted")
    assert "not found" in message
    assert seen == ["x", "y"]


def test_the_end_of_a_container_commits(checks: Checks, runner: Runner, client: Client) -> None:
    assert checks.value("leave") == "ta-"
    name = f"mounted-{client.version.replace('.', '-')}"
    runner.cli(client, "volume", "get", name, "at-exit", "-").succeeded()
