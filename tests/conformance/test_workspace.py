"""Environments, tokens, profiles, settings and the workspace, as the CLI shows and changes them."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.harness.bare import BareServer
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Completed, Runner
from tests.conformance.harness.server import Server


def _rows(runner: Runner, client: Client, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = runner.rows(client, *arguments)
    return found


def _name(client: Client) -> str:
    return f"env-{client.version.replace('.', '-')}"


# ── environments ────────────────────────────────────────────────────────────────────────────────


def test_environments(runner: Runner, client: Client) -> None:
    name = _name(client)

    def environment(*arguments: str) -> Completed:
        return runner.cli(client, "environment", *arguments)

    environment("create", name).succeeded()
    assert name in [row["name"] for row in _rows(runner, client, "environment", "list")]
    again = environment("create", name)
    assert again.returncode != 0
    assert "already exists" in again.output
    environment("update", name, "--set-name", f"{name}-b", "--set-web-suffix", name).succeeded()
    found = {row["name"]: row for row in _rows(runner, client, "environment", "list")}
    assert name not in found
    assert found[f"{name}-b"]["web_suffix"] == name
    missing = environment("update", name, "--set-name", "other")
    assert missing.returncode != 0
    assert "not found" in missing.output
    refused = environment("create", "no blanks, please")
    assert refused.returncode != 0
    environment("delete", f"{name}-b", *_sure(client)).succeeded()
    assert f"{name}-b" not in [row["name"] for row in _rows(runner, client, "environment", "list")]
    assert environment("delete", f"{name}-b", *_sure(client)).returncode != 0
    default = environment("delete", "main", *_sure(client))
    assert default.returncode != 0
    assert "default" in default.output


def _sure(client: Client) -> list[str]:
    return ["--yes"] if client.release >= (1, 4) else ["--confirm"]


def test_objects_are_in_the_environment_that_is_named(runner: Runner, client: Client) -> None:
    name = f"{_name(client)}-objects"
    runner.cli(client, "environment", "create", name).succeeded()
    runner.cli(client, "dict", "create", "only-here", "--env", name).succeeded()
    elsewhere = {"MODAL_ENVIRONMENT": name}
    listed = runner.cli(client, "dict", "list", "--json", environ=elsewhere).succeeded()
    assert [next(iter(row.values())) for row in json.loads(listed.stdout)] == ["only-here"]
    assert "only-here" not in runner.cli(client, "dict", "list", "--json").succeeded().stdout
    runner.cli(client, "environment", "delete", name, *_sure(client)).succeeded()
    gone = runner.cli(client, "dict", "list", "--env", name)
    assert gone.returncode != 0
    assert "not found" in gone.output


# ── tokens, profiles, configuration ─────────────────────────────────────────────────────────────


class Address(BareServer):
    """The server as somebody knows it who has no token."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder)
        self._known = url

    def environment(self) -> dict[str, str]:
        return {"MODAL_SERVER_URL": self._known}


class Desk:
    """A person with a configuration file and no variables but the server's address."""

    def __init__(self, client: Client, folder: Path, url: str) -> None:
        self.runner = Runner(Address(folder, url), folder)
        self._client = client

    def modal(self, *arguments: str) -> Completed:
        return self.runner.cli(self._client, *arguments)

    def profiles(self) -> dict[str, dict[str, Any]]:
        return tomllib.loads((self.runner.folder / "modal.toml").read_text())


@pytest.fixture
def desk(client: Client, server: Server, tmp_path: Path) -> Desk:
    return Desk(client, tmp_path, server.url)


def test_token_set_profiles_and_configuration(desk: Desk, server: Server) -> None:
    known = server.environment()
    pair = ["--token-id", known["MODAL_TOKEN_ID"], "--token-secret", known["MODAL_TOKEN_SECRET"]]
    desk.modal("token", "set", *pair, "--profile", "mine").succeeded()
    profiles = desk.profiles()
    assert profiles["mine"]["token_id"] == known["MODAL_TOKEN_ID"]
    assert profiles["mine"]["active"] is True
    assert desk.modal("profile", "current").succeeded().stdout.strip() == "mine"
    listed = desk.modal("profile", "list", "--json").succeeded()
    assert [row["workspace"] for row in json.loads(listed.stdout)] == ["homeport"]
    wrong = desk.modal("token", "set", "--token-id", "ak-x", "--token-secret", "as-x")
    assert wrong.returncode != 0
    assert "does not know the token" in wrong.output
    other = [*pair, "--profile", "other", "--no-activate", "--no-verify"]
    desk.modal("token", "set", *other).succeeded()
    desk.modal("profile", "activate", "other").succeeded()
    assert desk.modal("profile", "current").succeeded().stdout.strip() == "other"
    shown = desk.modal("config", "show").succeeded()
    assert known["MODAL_TOKEN_ID"] in shown.stdout
    assert known["MODAL_TOKEN_SECRET"] not in shown.stdout
    desk.modal("config", "set-environment", "main").succeeded()
    assert desk.profiles()["other"]["environment"] == "main"


def test_a_token_from_the_browser(
    desk: Desk, runner: Runner, client: Client, server: Server
) -> None:
    started = desk.runner.start_cli(client, "token", "new", "--profile", "new")
    started.wait_for(lambda output: "Enter this code" in output)
    code = re.search(r"Enter this code: (\S+)", started.output())
    assert code is not None
    assert server.homeport("token", "approve", "WRONG-CODE").returncode != 0
    approved = server.homeport("token", "approve", code[1])
    assert approved.returncode == 0, approved.stderr
    started.ended(60).succeeded()
    profile = desk.profiles()["new"]
    assert profile["token_id"] in approved.stdout
    assert profile["server_url"] == server.url
    mine = {
        "MODAL_TOKEN_ID": profile["token_id"],
        "MODAL_TOKEN_SECRET": profile["token_secret"],
    }
    runner.cli(client, "app", "list", environ=mine).succeeded()
    assert server.homeport("token", "approve", code[1]).returncode != 0  # once only
    if client.release >= (1, 6):
        tokens = ("workspace", "member-tokens")
        runner.cli(client, *tokens, "delete", profile["token_id"], "--yes").succeeded()
        gone = runner.cli(client, "app", "list", environ=mine)
        assert "does not know the token" in gone.output


@pytest.mark.since("1.6.0")
def test_member_tokens(runner: Runner, client: Client, server: Server) -> None:
    own = server.environment()["MODAL_TOKEN_ID"]
    info = runner.cli(client, "token", "info").succeeded()
    assert own in info.output
    assert "homeport" in info.output
    listed = runner.cli(client, "workspace", "member-tokens", "list", "--json").succeeded()
    assert own in listed.stdout
    gone = runner.cli(client, "workspace", "member-tokens", "delete", "ak-none", "--yes")
    assert gone.returncode != 0
    assert "there is no token" in gone.output


@pytest.mark.since("1.6.0")
def test_the_workspace_answers_honestly(runner: Runner, client: Client) -> None:
    def modal(*arguments: str) -> str:
        return runner.cli(client, *arguments).succeeded().stdout

    (member,) = json.loads(modal("workspace", "members", "list", "--json"))
    assert "homeport" in str(member)
    assert "owner" in str(member).lower()
    assert "main" in modal("workspace", "settings", "list")
    for command in ("summary", "rates"):
        refused = runner.cli(client, "billing", command)
        assert refused.returncode == 1
        assert "nothing is billed" in refused.output


@pytest.mark.since("1.6.0")
def test_settings_of_the_workspace(runner: Runner, client: Client) -> None:
    def settings(*arguments: str) -> Completed:
        return runner.cli(client, "workspace", "settings", *arguments)

    settings("set", "image-builder-version", "2025.06").succeeded()
    assert "2025.06" in settings("list").succeeded().stdout
    unknown = settings("set", "image-builder-version", "1999.01")
    assert unknown.returncode != 0
    settings("set", "default-environment", "main").succeeded()
    assert settings("set", "default-environment", "no-such-env").returncode != 0


@pytest.mark.since("1.6.0")
def test_member_tokens_disabled_and_rotated(
    desk: Desk, runner: Runner, client: Client, server: Server
) -> None:
    def sign_in(*command: str) -> None:
        started = desk.runner.start_cli(client, *command)
        started.wait_for(lambda output: "Enter this code" in output)
        code = re.search(r"Enter this code: (\S+)", started.output())
        assert code is not None
        approved = server.homeport("token", "approve", code[1])
        assert approved.returncode == 0, approved.stderr
        started.ended(60).succeeded()

    sign_in("token", "new")
    profile = "homeport"  # that of the workspace
    token = desk.profiles()[profile]["token_id"]

    def tokens(*arguments: str) -> Completed:
        return runner.cli(client, "workspace", "member-tokens", *arguments)

    tokens("disable", token, "--yes").succeeded()
    assert desk.modal("app", "list").returncode != 0
    tokens("enable", token, "--yes").succeeded()
    desk.modal("app", "list").succeeded()
    sign_in("token", "rotate")
    rotated = desk.profiles()[profile]["token_id"]
    assert rotated != token
    desk.modal("app", "list").succeeded()
    listed = tokens("list", "--json").succeeded().stdout
    assert token not in listed
    tokens("delete", rotated, "--yes").succeeded()


@pytest.mark.since("1.6.0")
def test_proxy_tokens(runner: Runner, client: Client) -> None:
    def tokens(*arguments: str) -> Completed:
        return runner.cli(client, "workspace", "proxy-tokens", *arguments)

    made = tokens("create", "--name", "first name", "--json").succeeded().stdout
    found = re.search(r"wk-[0-9A-Za-z]+", made)
    assert found is not None
    token = found[0]
    assert "ws-" in made
    assert "first name" in tokens("list", "--json").succeeded().stdout
    tokens("update", token, "name", "second name").succeeded()
    listed = tokens("list", "--json").succeeded().stdout
    assert "second name" in listed
    assert "first name" not in listed
    assert "ws-" not in listed
    name = f"{_name(client)}-proxy"
    runner.cli(client, "environment", "create", name).succeeded()
    tokens("allow", token, name).succeeded()
    tokens("revoke", token, name).succeeded()
    assert tokens("allow", token, "no-such-env").returncode != 0
    runner.cli(client, "environment", "delete", name, *_sure(client)).succeeded()
    tokens("delete", token, "--yes").succeeded()
    assert token not in tokens("list", "--json").succeeded().stdout
    for command in (["delete", token, "--yes"], ["update", token, "name", "third name"]):
        gone = tokens(*command)
        assert gone.returncode != 0
        assert token in gone.output


# ── environments as objects ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def objects(runner: Runner, client: Client) -> Checks:
    """What the program reported."""
    return runner.checks(client, "environment_objects", script=True)


def test_functions_of_environments(objects: Checks) -> None:
    assert objects.value("functions") == [False, "suffix", False]


@pytest.mark.since("1.5")
@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("created", [True, "en-", True, True]),
        ("context", "main"),
        ("roles", {"users": {"homeport": "contributor"}, "service_users": {}}),
        ("unchanged", True),
        ("deleted", False),
    ],
)
def test_environment_object(objects: Checks, check: str, expected: object) -> None:
    assert objects.value(check) == expected


@pytest.mark.since("1.6")
def test_apps_of_an_environment(objects: Checks) -> None:
    assert objects.value("apps") == [True, False]


@pytest.mark.since("1.5")
@pytest.mark.parametrize(
    ("check", "kind", "words"),
    [
        ("create_again", "AlreadyExistsError", "already exists"),
        ("bad_name", "InvalidError", "no blanks"),
        ("missing", "NotFoundError", "not found"),
        ("delete_missing", "NotFoundError", "not found"),
        ("object_in_deleted", "NotFoundError", "not found"),
        ("less", "Error", "the owner of the workspace may do everything"),
        ("nobody", "InvalidError", "'somebody' not found"),
        ("billing_summary", "UnimplementedError", "nothing is billed"),
        ("billing_report", "UnimplementedError", "nothing is billed"),
    ],
)
def test_environment_object_refuses(objects: Checks, check: str, kind: str, words: str) -> None:
    error = objects.error(check)
    assert kind in error["bases"], error["traceback"]
    assert words in error["message"]


@pytest.mark.since("1.6")
def test_roles_and_billing_on_the_command_line(runner: Runner, client: Client) -> None:
    def environment(*arguments: str) -> Completed:
        return runner.cli(client, "environment", *arguments)

    assert "contributor" in environment("roles", "list", "main").succeeded().stdout
    environment("roles", "update", "main", "homeport", "--role", "contributor").succeeded()
    less = environment("roles", "update", "main", "homeport", "--role", "viewer")
    assert less.returncode != 0
    assert "may do everything" in less.output
    refused = environment("billing", "summary", "main")
    assert refused.returncode != 0
    assert "nothing is billed" in refused.output
