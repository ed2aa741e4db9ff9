"""Secrets: each public method and each error, what containers get, the CLI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Completed, Runner

PROGRAM = "secret_values"


@pytest.fixture
def found(runner: Runner, client: Client) -> Checks:
    """What the program reported."""
    return runner.checks(client, PROGRAM, script=True)


def error_of(found: Checks, check: str, kind: str, client: Client, words: str = "") -> None:
    """The check failed with that exception; clients before 1.3 show a bare gRPC error instead."""
    error = found.error(check)
    kinds = {kind} if client.release >= (1, 3) else {kind, "GRPCError"}
    assert kinds & set(error["bases"]), error["traceback"]
    assert words in error["message"]


def test_created_and_found(found: Checks) -> None:
    assert found.value("created") == ["st-", True]
    assert found.value("required") == "st-"


def test_what_is_not_there(found: Checks, client: Client) -> None:
    error_of(found, "required_missing", "NotFoundError", client, "NO_ONE, NO_TWO")
    error_of(found, "missing", "NotFoundError", client, "not found in environment 'main'")
    error_of(found, "missing_environment", "NotFoundError", client, "no-such-env")


def test_what_cannot_be(found: Checks, client: Client) -> None:
    error_of(found, "bad_name", "InvalidError", client)
    error_of(found, "bad_key", "InvalidError", client, "cannot name an environment variable")
    error_of(found, "bad_value", "InvalidError", client, "32768 characters")
    assert found.value("largest_value") is None
    error_of(found, "not_made", "NotFoundError", client)


def test_created_again(found: Checks, client: Client) -> None:
    error_of(found, "create_again", "AlreadyExistsError", client, "already exists")
    if client.release < (1, 1, 2):
        assert found.value("overwritten") is True


def test_lookup(found: Checks, client: Client) -> None:
    if client.release >= (1, 3):
        pytest.skip("clients since 1.3 have no lookup")
    assert found.value("lookup") == "st-"


@pytest.mark.since("1.1.2")
def test_managed(found: Checks, client: Client) -> None:
    assert found.value("allow_existing") == "st-"
    assert found.value("listed") == [True, True, 2]
    assert found.value("deleted") == "done"
    error_of(found, "delete_missing", "NotFoundError", client)


@pytest.mark.since("1.2")
def test_information(found: Checks) -> None:
    assert found.value("info") == [True, True, True]


def test_in_a_container(found: Checks) -> None:
    values = ["overridden", "ä ö\n'\"$", "p", None, "", "from here", "one", "two words", "three"]
    assert found.value("in_container") == repr(values)


@pytest.mark.since("1.3.5")
def test_update(found: Checks, client: Client) -> None:
    assert found.value("updated") == [True, "['1', '3', '4']"]
    error_of(found, "update_deleted", "NotFoundError", client)


def test_what_the_client_refuses(found: Checks) -> None:
    assert found.error("not_in_environment")["type"] == "InvalidError"
    assert found.error("not_strings")["type"] == "InvalidError"


def test_cli(runner: Runner, client: Client, tmp_path: Path) -> None:
    name = f"cli-secret-{client.version.replace('.', '-')}"

    def secret(command: str, *arguments: str) -> Completed:
        return runner.cli(client, "secret", command, *arguments)

    def names() -> list[str]:
        return [row["name"] for row in runner.rows(client, "secret", "list")]

    secret("create", name, "A=1", "B=two words").succeeded()
    assert name in names()
    again = secret("create", name, "A=2")
    assert again.returncode != 0
    assert "already exists" in again.output
    secret("create", name, "A=2", "--force").succeeded()
    (tmp_path / "values.json").write_text(json.dumps({"FROM_JSON": "1"}))
    (tmp_path / "values.env").write_text("FROM_DOTENV=1\n")
    secret("create", f"{name}-json", "--from-json", str(tmp_path / "values.json")).succeeded()
    secret("create", f"{name}-env", "--from-dotenv", str(tmp_path / "values.env")).succeeded()
    look = "import modal, sys; modal.Secret.from_name(sys.argv[1], required_keys=sys.argv[2:]).hydrate()"
    runner.python(client, "-c", look, f"{name}-json", "FROM_JSON").succeeded()
    runner.python(client, "-c", look, f"{name}-env", "FROM_DOTENV").succeeded()
    assert runner.python(client, "-c", look, name, "B").returncode != 0  # it was replaced
    bad = secret("create", f"{name}-bad", "1A=1")
    assert bad.returncode != 0
    assert "cannot name an environment variable" in bad.output
    secret("delete", name, "--yes").succeeded()
    assert name not in names()
    gone = secret("delete", name, "--yes")
    assert gone.returncode != 0
    assert "not found" in gone.output
