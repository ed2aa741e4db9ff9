"""Deployed apps: called by name, redeployed, rolled back, stopped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import PROGRAMS, Checks, Runner


def deploy(runner: Runner, client: Client, name: str, edition: str, *options: str) -> None:
    file = str(PROGRAMS / "deployed.py")
    environ = {"EDITION": edition}
    runner.cli(client, "deploy", "--name", name, *options, file, environ=environ).succeeded()


@pytest.fixture(scope="module")
def name(client: Client, runner: Runner) -> Iterator[str]:
    """An app deployed with this client."""
    name = f"deployed-{client.version.replace('.', '-')}"
    deploy(runner, client, name, "one")
    yield name
    runner.cli(client, "app", "stop", name, *_yes(client))


def _yes(client: Client) -> list[str]:
    return ["--yes"] if client.release >= (1, 4) else []


@pytest.fixture
def called(runner: Runner, client: Client, name: str) -> Checks:
    return runner.checks(client, "deployed_caller", name, script=True)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("function", 42),
        ("map", [0, 2, 4, 6, 8]),
        ("spawn", 8),
        ("generator", [0, 1, 2]),
        ("class", "Hello, you"),
        ("class_parameter", "Moin, you"),
        ("options", "yes"),
        ("edition", "one"),
    ],
)
def test_called_by_name(called: Checks, check: str, expected: object) -> None:
    assert called.value(check) == expected


@pytest.mark.parametrize("check", ["unknown_function", "unknown_class", "class_as_function"])
def test_unknown_names(called: Checks, check: str) -> None:
    error = called.error(check)
    assert "NotFoundError" in error["bases"]
    assert error["message"]


def test_listed(runner: Runner, client: Client, name: str) -> None:
    rows = [row for row in runner.rows(client, "app", "list") if row["description"] == name]
    assert [row["state"] for row in rows] == ["deployed"]


def test_logs(runner: Runner, client: Client, name: str, called: Checks) -> None:
    called.value("function")
    if client.release < (1, 4):
        pytest.skip("streams for ever in this client")
    done = runner.cli(client, "app", "logs", name).succeeded()
    assert "doubling 21 in edition one" in done.stdout


def edition(runner: Runner, client: Client, name: str) -> str:
    runner._results.pop((client.version, "deployed_caller"), None)
    return runner.checks(client, "deployed_caller", name, script=True).value("edition")


def versions(runner: Runner, client: Client, name: str) -> list[str]:
    return [row["version"] for row in runner.rows(client, "app", "history", name)]


@pytest.mark.xfail(reason="AppRollback is not built yet: it answers UNIMPLEMENTED", strict=True)
def test_redeploy_and_roll_back(runner: Runner, client: Client, name: str, called: Checks) -> None:
    deploy(runner, client, name, "two", "--tag", "second")
    assert edition(runner, client, name) == "two"
    rows = runner.rows(client, "app", "history", name)
    assert [row["version"] for row in rows] == ["v2", "v1"]
    assert rows[0]["tag"] == "second"
    assert rows[0]["client"] == client.version
    runner.cli(client, "app", "rollback", name).succeeded()
    assert edition(runner, client, name) == "one"
    assert versions(runner, client, name)[0] == "v3"


def test_stop(runner: Runner, client: Client) -> None:
    name = f"stopped-{client.version.replace('.', '-')}"
    deploy(runner, client, name, "one")
    runner.cli(client, "app", "stop", name, *_yes(client)).succeeded()
    done = runner.script(
        client, "deployed_caller.py", name, environ={"CONFORMANCE_REPORT": "/dev/null"}
    )
    assert done.returncode == 0
    states = {r["state"] for r in runner.rows(client, "app", "list") if r["description"] == name}
    assert states == {"stopped"}
    deploy(runner, client, name, "again")
    runner.cli(client, "app", "stop", name, *_yes(client)).succeeded()
