"""A client that repeats a call whose answer was lost neither loses nor doubles anything.

``lost``: the server is still there and knows the answer. ``crashed``: it died between doing the
work and the repeat.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance.harness.bare import BareServer
from tests.conformance.harness.clients import Client
from tests.conformance.harness.lossy import LossyProxy
from tests.conformance.harness.programs import Checks, Runner

DELETIONS = (
    "DictDelete",
    "EnvironmentDelete",
    "EnvironmentUpdate",
    "QueueDelete",
    "SecretDelete",
    "VolumeDelete",
)
VOLUMES = (
    "VolumeCopyFiles",
    "VolumeCopyFiles2",
    "VolumePutFiles",
    "VolumePutFiles2",
    "VolumeRemoveFile",
    "VolumeRemoveFile2",
)
LOSE = (
    *DELETIONS,
    "DictGetOrCreate",
    "DictPop",
    "DictUpdate",
    "EnvironmentCreate",
    "QueueGet",
    "QueueGetOrCreate",
    "QueuePut",
    "SecretGetOrCreate",
    "VolumeGetOrCreate",
    *VOLUMES,
)
CRASH = (
    *DELETIONS,
    "DictPop",
    "DictUpdate",
    "QueueGet",
    "QueuePut",
    "EnvironmentCreate",
    "SecretGetOrCreate",
    "DictGetOrCreate",
    "QueueGetOrCreate",
)

_found: dict[tuple[str, str], Checks] = {}


@pytest.fixture(params=["lost", "crashed"])
def outcome(request: pytest.FixtureRequest, client: Client, tmp_path: Path) -> Checks:
    """What the program reports behind a proxy that loses the first answer to each call."""
    key = (request.param, client.version)
    if key not in _found:
        _found[key] = _run(client, tmp_path, is_crashing=request.param == "crashed")
    return _found[key]


def _run(client: Client, folder: Path, *, is_crashing: bool) -> Checks:
    bare = BareServer(folder / "home")
    bare.start()

    def crash() -> None:
        bare.kill()
        bare.start()

    def nothing() -> None:
        pass

    lose, meanwhile = (CRASH, crash) if is_crashing else (LOSE, nothing)
    try:
        with LossyProxy(int(bare.url.rpartition(":")[2]), lose, meanwhile) as proxy:
            bare.reached_by = proxy.url
            checks = Runner(bare, folder).checks(client, "lost_answers", "x", script=True)
            checks.note("lost", proxy.lost)
            uploads = {"VolumePutFiles", "VolumePutFiles2", "VolumeRemoveFile2"}
            checks.note("of_volumes", is_crashing or uploads <= {*proxy.lost})
    finally:
        bare.stop()
    return checks


def test_answers_were_lost(outcome: Checks) -> None:
    lost = set(outcome.value("lost"))
    assert {"DictPop", "DictUpdate", "QueueGet", "QueuePut"} <= lost


@pytest.mark.newest
def test_answers_of_volumes_were_lost(outcome: Checks) -> None:
    assert outcome.value("of_volumes")


@pytest.mark.since("1.1.2")
def test_answers_to_deletions_were_lost(outcome: Checks) -> None:
    assert {*DELETIONS, "EnvironmentCreate"} <= set(outcome.value("lost"))


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("dict_pop", [1, False]),
        ("dict_put_if_missing", [True, 1, 1]),
        ("dict_update", [["a", 1], ["b", 2], ["once", 1]]),
        ("queue_put", 3),
        ("queue_get", [1, [2], 3, 0]),
        ("queue_get_waiting", ["late", 0]),
        ("environment_create", None),
        ("environment_rename", None),
        ("environment_delete", [False, False]),
        ("secret_create", None),
        ("volume_1_put", "content"),
        ("volume_1_copy", ["copy.txt", "file.txt"]),
        ("volume_1_remove", ["copy.txt"]),
        ("volume_2_put", "content"),
        ("volume_2_copy", ["copy.txt", "file.txt"]),
        ("volume_2_remove", ["copy.txt"]),
    ],
)
def test_repeated(outcome: Checks, check: str, expected: object) -> None:
    assert outcome.value(check) == expected


@pytest.mark.since("1.1.2")
@pytest.mark.parametrize(
    "check",
    [
        "dict_create",
        "queue_create",
        "volume_create",
        "dict_delete",
        "queue_delete",
        "secret_delete",
        "volume_delete",
    ],
)
def test_repeated_creation_and_deletion(outcome: Checks, check: str) -> None:
    assert outcome.value(check) is None
