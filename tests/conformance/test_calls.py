"""Single calls, spawned calls, payload sizes."""

from __future__ import annotations

import hashlib

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks

PROGRAM = "calls"
MEBI = 1024 * 1024


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("positional", {"a": 1, "b": 2, "rest": [], "c": 3, "extra": {}}),
        ("keywords", {"a": 1, "b": 2, "rest": [], "c": "x", "extra": {"z": 26}}),
        ("variadic", {"a": 1, "b": 2, "rest": [3, 4], "c": 5, "extra": {}}),
        ("none", None),
        ("local", {"a": 1, "b": 2, "rest": [], "c": 3, "extra": {}}),
        ("async_function", 5),
        ("renamed", "found by its given name"),
        ("values", True),
        ("serialized", 15),
    ],
)
def test_call(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_missing_argument(checks: Checks) -> None:
    error = checks.error("missing_argument")
    assert error["type"] == "TypeError"
    assert "'a'" in error["message"]


def test_concurrent_aio(checks: Checks) -> None:
    assert [found["a"] for found in checks.value("remote_aio")] == [0, 1, 2, 3, 4]


def test_container_surroundings(checks: Checks, client: Client) -> None:
    found = checks.value("surroundings")
    assert found["is_local"] is False
    assert found["cwd"] == "/root"
    assert found["file"] == "/root/calls.py"
    assert found["python"] == [3, 11]
    assert found["client"] == client.version
    assert found["writable"] is True
    assert found["resolves"] == "127.0.0.1"
    assert found["environ"]["MODAL_IS_REMOTE"] == "1"
    assert found["environ"]["MODAL_TASK_ID"].startswith("ta-")
    assert found["environ"]["MODAL_IMAGE_ID"].startswith("im-")


def test_secrets_in_order(checks: Checks) -> None:
    environ = checks.value("surroundings")["environ"]
    assert (environ["GREETING"], environ["SECOND"]) == ("hallo", "two words")
    assert environ["SHARED"] == "second"


def test_own_ids_are_known_inside(checks: Checks) -> None:
    input_id, call_id = checks.value("identify")
    assert input_id.startswith("in-")
    assert call_id.startswith("fc-")


def test_spawn(checks: Checks) -> None:
    found = checks.value("spawn")
    assert found["id"].startswith("fc-")
    assert found["value"]["c"] == 9


@pytest.mark.parametrize("check", ["get_again", "from_id"])
def test_result_stays_readable(checks: Checks, check: str) -> None:
    assert checks.value(check)["c"] == 9


def test_call_graph(checks: Checks) -> None:
    assert checks.value("call_graph") >= 1


@pytest.mark.parametrize("check", ["get_timeout_zero", "get_timeout"])
def test_get_with_timeout(checks: Checks, check: str) -> None:
    assert "TimeoutError" in checks.error(check)["bases"]


def test_get_after_timeout(checks: Checks) -> None:
    assert checks.value("get_after_timeout") == "late"


def test_gather(checks: Checks) -> None:
    assert checks.value("gather") == [1, 2]


def test_spawn_aio(checks: Checks) -> None:
    assert checks.value("spawn_aio") == 3


@pytest.mark.parametrize("check", ["cancel_running", "cancel_running_async", "cancel_terminate"])
def test_cancel(checks: Checks, check: str) -> None:
    error = checks.error(check)
    assert error["type"] in ("RemoteError", "InputCancellation")
    assert error["message"]


def test_container_lives_on_after_cancel(checks: Checks) -> None:
    assert checks.value("call_after_cancel") == "still here"


def test_cancel_of_a_queued_call(checks: Checks) -> None:
    found = checks.value("cancel_queued")
    assert found["second"] in ("RemoteError", "InputCancellation")
    assert (found["first"], found["third"]) == (5, 0.5)


@pytest.mark.parametrize("size", ["small", "async_limit", "inline_limit", "5mb", "50mb"])
def test_argument_size(checks: Checks, size: str) -> None:
    assert checks.value(f"argument_{size}") is True


@pytest.mark.parametrize(
    ("check", "size"),
    [
        ("spawn_9kb", 9000),
        ("spawn_result_9kb", 9000),
        ("spawn_5mb", 5 * MEBI),
        ("result_3mb", 3 * MEBI),
    ],
)
def test_payload_size(checks: Checks, check: str, size: int) -> None:
    assert checks.value(check) == size


def test_result_50mb(checks: Checks) -> None:
    expected = bytes(50 * [7]) * MEBI
    assert checks.value("result_50mb") == [len(expected), hashlib.sha256(expected).hexdigest()]
