"""Dicts: each public method and each error, from the local side, from containers, by the CLI."""

from __future__ import annotations

import json

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

PROGRAM = "dicts"


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("deleted", [0, True]),
        ("items_set_and_get", ["ß", True, None]),
        ("get_default", [None, 5]),
        ("contains", [True, True, False]),
        ("len", 3),
        ("put", [True, True, 2]),
        ("put_if_missing", [True, False, 1]),
        ("update", [4, 2, 3]),
        ("pop", [4, False]),
        ("del", False),
        ("keys", ["('tuple', 1)", "17", "new", "once", "text", "z"]),
        ("values", ["1", "2", "3", "None", "[1, {'k': (2, 3)}]", "ß"]),
        ("aio", [1, True, 2, True, True]),
        ("clear", [0, [], False, None]),
        ("clear_again", None),
        ("race", [1, 1]),
        ("many_entries", [5000, 5000, True]),
        ("after_too_many", 5000),
        ("container_handle", [2, True]),
        ("ephemeral", [1, 0, True]),
        ("ephemeral_aio", 1),
        ("value_64k", [True, True, True]),
        ("value_1mb", [True, True, True]),
        ("value_20mb", [True, True, True]),
        ("after_too_large", False),
    ],
)
def test_dict(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_created_once(checks: Checks) -> None:
    object_id, is_same = checks.value("created")
    assert object_id.startswith("di-")
    assert is_same


@pytest.mark.since("1.3.3")
def test_information(checks: Checks, client: Client) -> None:
    name = f"conformance-dict-{client.version}"
    assert checks.value("information") == [name, name, True, True]


def test_contents(checks: Checks) -> None:
    assert ["once", "1"] in checks.value("contents")
    assert len(checks.value("contents")) == 6


@pytest.mark.parametrize("check", ["key_error", "pop_missing", "del_missing"])
def test_missing_key(checks: Checks, check: str) -> None:
    assert checks.error(check)["type"] == "KeyError"


@pytest.mark.since("1.2.6")
def test_pop_default(checks: Checks) -> None:
    assert checks.value("pop_default") == "default"


def test_container(checks: Checks, client: Client) -> None:
    found = checks.value("container")
    assert found["pop"] == "popped"
    assert found["missing"] == "default"
    assert found["a"] == 10
    assert found["saw"] == ["a", "to pop"]
    assert found["made"] == "inside"
    if client.release >= (1, 3, 3):
        assert found["by_id"] == 10


def test_restricted_container_has_no_access(checks: Checks) -> None:
    error = checks.error("container_restricted")
    assert "restricted access" in error["message"]


@pytest.mark.parametrize(
    ("check", "method"),
    [
        ("value_too_large_put", "put"),
        ("value_too_large_update", "update"),
        ("key_too_large", "put"),
        ("too_many_updates", "update"),
    ],
)
def test_too_large(checks: Checks, check: str, method: str) -> None:
    error = checks.error(check)
    assert error["type"] == "RequestSizeError"
    assert f"Dict.{method}" in error["message"]


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("no_such_dict", "Dict 'no-such-dict' not found in environment 'main'"),
        ("no_such_environment", "Environment 'no-such-env' not found"),
        ("no_such_id", "not found"),
        ("used_after_delete", "not found"),
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
    [("list", [True, True, 0]), ("delete", None), ("delete_allow_missing", None)],
)
def test_managed(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


@pytest.mark.since("1.1.2")
def test_create(checks: Checks) -> None:
    assert len(checks.value("create")) == 1
    assert "AlreadyExistsError" in checks.error("create_existing")["bases"]
    assert "NotFoundError" in checks.error("delete_missing")["bases"]


def test_cli(runner: Runner, client: Client) -> None:
    name = f"cli-dict-{client.version}"
    runner.cli(client, "dict", "create", name).succeeded()
    runner.cli(client, "dict", "create", name).succeeded()
    row = next(row for row in runner.rows(client, "dict", "list") if row["name"] == name)
    assert row["created_at"]
    fill = (
        "import modal, sys; d = modal.Dict.from_name(sys.argv[1]);"
        "d.update({f'k{n:02d}': f'v{n}' for n in range(30)})"
    )
    runner.python(client, "-c", fill, name).succeeded()
    assert "v7" in runner.cli(client, "dict", "get", name, "k07").succeeded().stdout
    some = runner.cli(client, "dict", "items", name, "5").succeeded().stdout
    assert 5 <= some.count("k") < 10
    everything = runner.cli(client, "dict", "items", name, "--all", "--json").succeeded()
    assert len(json.loads(everything.stdout)) == 30
    runner.cli(client, "dict", "clear", name, "--yes").succeeded()
    assert json.loads(runner.cli(client, "dict", "items", name, "--json").stdout) == []
    runner.cli(client, "dict", "delete", name, "--yes").succeeded()
    assert name not in [row["name"] for row in runner.rows(client, "dict", "list")]
    gone = runner.cli(client, "dict", "get", name, "k")
    assert gone.returncode != 0
    assert "not found" in gone.output
