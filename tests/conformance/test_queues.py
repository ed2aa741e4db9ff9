"""Queues: each public method and each error, from the local side, from containers, by the CLI."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

PROGRAM = "queues"


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("deleted", [0, True]),
        ("in_order", [3, "ß", 2, True, 0]),
        ("many", [[0, 1, 2], [3, 4, 5, 6, 7, 8, 9], 0, 0]),
        ("empty_now", [None, []]),
        ("none_is_a_value", [None, 1, None, 0]),
        ("clear", [0, None]),
        ("aio", [3, 1, [2, 3]]),
        ("none_twice", [200, 200, 0]),
        ("item_1mb", True),
        ("ephemeral", [1, 0, 1, True]),
        ("partitions", [1, 2, 4, "a1", None, ["b1", "b2"], "default"]),
        ("partitions_cleared", [2, 0, 0]),
        ("partition_ttl", [True, None, 1, [2, 3]]),
        ("key_64", [None, 1]),
        ("woken", "late"),
        ("fair", True),
        ("crowd", True),
        ("cancelled_getters", list(range(20))),
        ("iterate", [True, 450, ["x"]]),
        ("iterate_follows", [0, 1, 2, 3, 4]),
        ("iterate_empty", []),
        ("filled", 5000),
        ("full_keeps", 5000),
        ("full_others", [None, 1]),
        ("full_waits_for_room", [4991, "at last"]),
        ("bytes_full", 64),
        ("container", [True, 20]),
        ("container_dead", ["here", "kept"]),
    ],
)
def test_queue(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_created_once(checks: Checks) -> None:
    object_id, is_same = checks.value("created")
    assert object_id.startswith("qu-")
    assert is_same


@pytest.mark.since("1.3.3")
def test_information(checks: Checks, client: Client) -> None:
    name = f"conformance-queue-{client.version}"
    assert checks.value("information") == [name, name, True, True]


@pytest.mark.parametrize("check", ["empty_later", "empty_many_later", "empty_past"])
def test_empty(checks: Checks, check: str) -> None:
    assert checks.error(check)["type"] == "Empty"


@pytest.mark.parametrize("check", ["full_now", "full_many_now", "full_later"])
def test_full(checks: Checks, check: str) -> None:
    error = checks.error(check)
    assert error["type"] == "Full"
    assert "5000" in error["message"]


@pytest.mark.parametrize(
    ("check", "method"),
    [
        ("item_too_large", "put"),
        ("item_too_large_blocking", "put"),
        ("items_too_large", "put_many"),
        ("items_too_large_in_all", "put_many"),
        ("too_many", "put_many"),
        ("message_too_large", "put"),
    ],
)
def test_what_never_fits_is_refused_at_once(checks: Checks, check: str, method: str) -> None:
    error = checks.error(check)
    assert error["type"] == "RequestSizeError"
    assert f"Queue.{method} " in error["message"]


@pytest.mark.parametrize("check", ["key_too_long", "key_empty", "clear_both", "len_both"])
def test_invalid(checks: Checks, check: str) -> None:
    assert checks.error(check)["type"] == "InvalidError"


def test_no_count(checks: Checks) -> None:
    assert "ask for 1 or more" in checks.error("no_count")["message"]


def test_restricted_container_has_no_access(checks: Checks) -> None:
    assert "restricted access" in checks.error("container_restricted")["message"]


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("no_such_queue", "Queue 'no-such-queue' not found in environment 'main'"),
        ("no_such_environment", "Environment 'no-such-env' not found"),
        ("no_such_id", "not found"),
        ("used_after_delete", "not found"),
        ("deleted_while_waiting", "was deleted"),
    ],
)
def test_not_found(checks: Checks, client: Client, check: str, words: str) -> None:
    if check == "no_such_id" and client.release < (1, 3, 3):
        pytest.skip("came with client 1.3.3")
    error = checks.error(check)
    raw = client.release < (1, 3) and error["type"] == "GRPCError"
    assert raw or error["type"] == "NotFoundError"
    assert words in error["message"]


def test_bad_name(checks: Checks) -> None:
    assert checks.error("bad_name")["type"] == "InvalidError"


@pytest.mark.since("1.1.2")
@pytest.mark.parametrize(
    ("check", "expected"),
    [("list", [True, True]), ("delete", None), ("delete_allow_missing", None)],
)
def test_managed(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


@pytest.mark.since("1.1.2")
def test_create(checks: Checks) -> None:
    assert len(checks.value("create")) == 1
    assert "AlreadyExistsError" in checks.error("create_existing")["bases"]
    assert "NotFoundError" in checks.error("delete_missing")["bases"]


def test_cli(runner: Runner, client: Client) -> None:
    name = f"cli-queue-{client.version}"
    runner.cli(client, "queue", "create", name).succeeded()
    runner.cli(client, "queue", "create", name).succeeded()
    fill = (
        "import modal, sys; q = modal.Queue.from_name(sys.argv[1]);"
        "q.put_many([f'item-{n}' for n in range(5)]); q.put_many(['x', 'y'], partition='p')"
    )
    runner.python(client, "-c", fill, name).succeeded()
    row = next(row for row in runner.rows(client, "queue", "list") if row["name"] == name)
    assert (str(row["partitions"]), str(row["total_size"])) == ("2", "7")

    def count(*options: str) -> int:
        return int(runner.cli(client, "queue", "len", name, *options).succeeded().stdout)

    assert [count(), count("--partition", "p"), count("--total")] == [5, 2, 7]
    peeked = runner.cli(client, "queue", "peek", name, "3").succeeded().stdout
    assert [line for line in peeked.split() if line.startswith("item")] == [
        "item-0",
        "item-1",
        "item-2",
    ]
    runner.cli(client, "queue", "clear", name, "--partition", "p", "--yes").succeeded()
    assert [count(), count("--total")] == [5, 5]
    runner.cli(client, "queue", "clear", name, "--all", "--yes").succeeded()
    assert count("--total") == 0
    runner.cli(client, "queue", "delete", name, "--yes").succeeded()
    assert name not in [row["name"] for row in runner.rows(client, "queue", "list")]
    gone = runner.cli(client, "queue", "len", name)
    assert gone.returncode != 0
    assert "not found" in gone.output
