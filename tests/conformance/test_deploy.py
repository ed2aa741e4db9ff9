"""Deployed apps: called by name, redeployed, rolled back, stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

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


TAGS = """
import json, modal, sys
app = modal.App.lookup(sys.argv[1])
seen = [app.get_tags()]
for tags in ({"team": "a", "cost.centre": "x-1_2"}, {"team": "b"}):
    app.set_tags(tags)
    seen.append(modal.App.lookup(sys.argv[1]).get_tags())
try:
    app.set_tags({"no blanks, please": "x"})
except modal.exception.InvalidError as error:
    seen.append(str(error))
app.set_tags({})
seen.append(app.get_tags())
print("SEEN " + json.dumps(seen))
"""


@pytest.mark.since("1.2.6")
def test_tags(runner: Runner, client: Client, name: str) -> None:
    done = runner.python(client, "-c", TAGS, name).succeeded()
    first, both, one, refused, none = json.loads(done.stdout.partition("SEEN ")[2])
    assert (first, none) == ({}, {})
    assert both == {"team": "a", "cost.centre": "x-1_2"}
    assert one == {"team": "b"}  # the whole set is replaced
    assert "no blanks, please" in refused


INFO = """
import json, modal, sys
info = modal.App.lookup(sys.argv[1]).info(refresh=True)
print("SEEN " + json.dumps([info.app_id, info.description, sorted(info.functions), str(info.lifecycle)]))
"""


@pytest.mark.since("1.6.4")
def test_info(runner: Runner, client: Client, name: str) -> None:
    done = runner.python(client, "-c", INFO, name).succeeded()
    app_id, description, functions, lifecycle = json.loads(done.stdout.partition("SEEN ")[2])
    assert description == name
    assert {"double", "count"} <= {*functions}
    assert "DEPLOYED" in lifecycle
    shown = json.loads(runner.cli(client, "app", "info", name, "--json").succeeded().stdout)
    assert (shown["app_id"], shown["description"]) == (app_id, name)
    assert shown["lifecycle"]["state"] == "deployed"
    assert sorted(shown["functions"]) == functions
    assert shown["functions"]["double"]["id"].startswith("fu-")
    plain = runner.cli(client, "app", "info", app_id).succeeded().stdout
    assert name in plain
    assert "double" in plain


BY_ID = """
import json, modal, sys
named = modal.Function.from_name(sys.argv[1], "double").hydrate()
known = modal.Function.from_id(named.object_id)
seen = [known.remote(4)]
known.update_autoscaler(max_containers=3, scaledown_window=7)
settings = known.autoscaler.settings()
seen += [settings.max_containers, settings.scaledown_window]
seen.append(known.info(refresh=True).__class__.__name__)
try:
    modal.Function.from_id("fu-" + "0" * 22).hydrate()
except modal.exception.NotFoundError as error:
    seen.append(str(error))
print("SEEN " + json.dumps(seen))
"""


@pytest.mark.since("1.6.4")
def test_functions_by_id(runner: Runner, client: Client, name: str) -> None:
    done = runner.python(client, "-c", BY_ID, name).succeeded()
    *seen, unknown = json.loads(done.stdout.partition("SEEN ")[2])
    assert seen == [8, 3, 7, "FunctionInfo"]
    assert f"fu-{'0' * 22}" in unknown


def edition(runner: Runner, client: Client, name: str, expected: str) -> str:
    """What is called by name, when it is what is expected or has had the time to become it."""
    done = runner.script(client, "deployed_edition.py", name, expected)
    return done.succeeded().stdout.strip()


def versions(runner: Runner, client: Client, name: str) -> list[str]:
    return [row["version"] for row in runner.rows(client, "app", "history", name)]


def test_redeploy_and_roll_back(runner: Runner, client: Client, name: str, called: Checks) -> None:
    called.value("function")
    deploy(runner, client, name, "two", "--tag", "second")
    assert edition(runner, client, name, "two") == "two"
    rows = runner.rows(client, "app", "history", name)
    assert [row["version"] for row in rows] == ["v2", "v1"]
    assert rows[0]["tag"] == "second"
    assert rows[0]["client"] == client.version
    runner.cli(client, "app", "rollback", name).succeeded()
    assert edition(runner, client, name, "one") == "one"
    assert versions(runner, client, name)[0] == "v3"
    runner.cli(client, "app", "rollback", name, "v2").succeeded()
    assert edition(runner, client, name, "two") == "two"
    refused = runner.cli(client, "app", "rollback", name, "v17")
    assert refused.returncode != 0
    assert "has no version v17" in refused.output
    assert versions(runner, client, name)[0] == "v4"


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


def test_unchanged_is_not_deployed_again(runner: Runner, client: Client) -> None:
    name = f"unchanged-{client.version.replace('.', '-')}"
    deploy(runner, client, name, "one")
    deploy(runner, client, name, "one")
    assert versions(runner, client, name) == ["v1"]
    deploy(runner, client, name, "one", "--tag", "named")
    assert versions(runner, client, name) == ["v2", "v1"]
    runner.cli(client, "app", "stop", name, *_yes(client)).succeeded()


@pytest.mark.since("1.5.4")
def test_versions_can_be_called(runner: Runner, client: Client) -> None:
    name = f"pinned-{client.version.replace('.', '-')}"
    deploy(runner, client, name, "one")
    deploy(runner, client, name, "two")
    for version, expected in (("1", "one"), ("2", "two"), ("0", "two")):
        done = runner.script(client, "deployed_edition.py", name, expected, version)
        assert done.succeeded().stdout.strip() == expected
    missing = runner.script(client, "deployed_edition.py", name, "", "9")
    assert "has no version v9" in missing.output
    runner.cli(client, "app", "stop", name, *_yes(client)).succeeded()


@pytest.mark.since("1.5.4")
def test_rollover_and_staged(runner: Runner, client: Client) -> None:
    name = f"rollover-{client.version.replace('.', '-')}"
    deploy(runner, client, name, "one")
    first = runner.script(client, "deployed_edition.py", name, "one", "0", "task").succeeded()
    runner.cli(client, "app", "rollover", name, "--strategy", "recreate").succeeded()
    second = runner.script(client, "deployed_edition.py", name, "one", "0", "task").succeeded()
    assert first.stdout != second.stdout
    assert versions(runner, client, name) == ["v2", "v1"]
    if client.release >= (
        1,
        6,
    ):  # those before can stage a version, and have no command to promote it
        deploy(runner, client, name, "three", "--staged")
        assert edition(runner, client, name, "one") == "one"
        runner.cli(client, "app", "promote", name, "v3").succeeded()
        assert edition(runner, client, name, "three") == "three"
        runner.cli(client, "app", "rollback", name).succeeded()  # v3 was staged, v2 was deployed
        assert edition(runner, client, name, "one") == "one"
        rows = runner.rows(client, "app", "history", name)
        assert [row["version"] for row in rows] == ["v5", "v4", "v3", "v2", "v1"]
    deploy(runner, client, name, "four", "--strategy", "recreate")
    assert edition(runner, client, name, "four") == "four"
    runner.cli(client, "app", "stop", name, *_yes(client)).succeeded()


@pytest.fixture(scope="module")
def stopped(client: Client, runner: Runner) -> str:
    """An app that was deployed once and stopped."""
    name = f"was-there-{client.version.replace('.', '-')}"
    deploy(runner, client, name, "one")
    runner.cli(client, "app", "stop", name, *_yes(client)).succeeded()
    return name


UNKNOWN_ID = "ap-0000000000000000000000"


@pytest.mark.since("1.5.4")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("history no-such-app", "No App with name 'no-such-app' found in the 'main' environment"),
        (f"rollback {UNKNOWN_ID}", f"'{UNKNOWN_ID}' not found"),
        ("stop [bold]x[/bold] --yes", "No App with name '[bold]x[/bold]'"),
        ("logs ../\N{LATIN SMALL LETTER A WITH DIAERESIS}", "No App with name '../"),
        ("history NAME --env nowhere", "Environment 'nowhere' not found; there are: "),
        ("rollback STOPPED", "is not deployed"),
        ("rollover STOPPED", "is not deployed"),
        ("stop STOPPED --yes", "already stopped"),
        ("rollback FRESH", "has no version to roll back to: v1 is the first one"),
        ("rollback FRESH v1", "v1 is the version that is deployed"),
        ("rollback FRESH v0", "name a version to roll back to"),
        ("rollback FRESH latest", "Invalid version specifier: latest"),
    ],
)
def test_mistakes(
    runner: Runner,
    client: Client,
    name: str,
    stopped: str,
    fresh: str,
    command: str,
    words: str,
) -> None:
    named = {"NAME": name, "STOPPED": stopped, "FRESH": fresh}
    done = runner.cli(client, "app", *(named.get(word, word) for word in command.split()))
    assert done.returncode != 0
    assert words in " ".join(done.output.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", "").split())


@pytest.mark.since("1.6.4")
def test_mistakes_when_promoting(runner: Runner, client: Client, stopped: str, fresh: str) -> None:
    for app, version, words in (
        (stopped, "v1", "is not deployed"),
        (fresh, "v1", "v1 is not staged"),
        (fresh, "v17", f"has no version v17 (the latest is v1); `modal app history {fresh}`"),
        (fresh, "v0", "Invalid version specifier: v0"),
    ):
        done = runner.cli(client, "app", "promote", app, version)
        assert done.returncode != 0
        assert words in done.output


@pytest.fixture(scope="module")
def fresh(client: Client, runner: Runner) -> Iterator[str]:
    """An app that was deployed once."""
    name = f"fresh-{client.version.replace('.', '-')}"
    deploy(runner, client, name, "one")
    yield name
    runner.cli(client, "app", "stop", name, *_yes(client))


REDEPLOYS = int(os.environ.get("HOMEPORT_TEST_REDEPLOYS", "3"))


def test_redeployed_under_load(runner: Runner, client: Client, tmp_path: Path) -> None:
    """Not one call fails, and each version comes to serve."""
    name = f"loaded-{client.version.replace('.', '-')}"
    editions = [f"number-{n}" for n in range(REDEPLOYS)]
    deploy(runner, client, name, editions[0])
    stop = tmp_path / "stop"
    load = runner.start_script(client, "deploy_load.py", name, str(stop), "2")
    try:
        load.wait_for(lambda output: "calling" in output)
        assert edition(runner, client, name, editions[0]) == editions[0]
        for each in editions[1:]:
            deploy(runner, client, name, each)
            assert edition(runner, client, name, each) == each
    finally:
        stop.touch()
    found = json.loads(load.ended(120).succeeded().stdout.splitlines()[-1])
    assert found["failures"] == []
    assert found["slow"] == editions[0]  # what runs is finished where it began
    assert found["calls"] > 10
    assert set(editions) <= {*found["editions"]} | {editions[0]}
    runner.cli(client, "app", "stop", name, *_yes(client)).succeeded()
