"""Images: one a method, looked at from inside a container."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    return runner.checks(client, "images", script=True)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (
            "settings",
            [
                "/srv/app dir",
                "x y|$PATH|it's",
                "z y",
                "through",
                "/srv/app dir",
                "x y",
                "$PATH",
                "it's",
            ],
        ),
        (
            "local_files",
            [["as.md", "one.txt"], "two", ["file.txt", "one.txt", "two.md"], "reporting"],
        ),
        ("entrypoint", "yes"),
        ("packages", ["1.16.0", "toml", True]),
        ("instructions", [["1", "1"], "from afar", ["one", "two"], "/bin/sh"]),
        ("imported", "toml"),
        ("forced", [True, 3, True]),
        ("aside", [True, True]),
        ("function_step", ["oil" * 6, ["bread0", "bread1"], False, False]),
    ],
)
def test_method(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_dockerfile_with_stages(checks: Checks) -> None:
    found: dict[str, Any]
    found, flavour = checks.value("dockerfile")
    assert found == {
        "listing": ["./archive.tar.gz", "./sub/one.txt", "./sub/two.md"],
        "inline": f"flavour {flavour}",
        "owner": "nobody",
        "mode": "0o640",
        "unpacked": "packed",
        "texts": ["one.txt"],
        "users": ["root", "nobody"],
        "cwd": "/made",
        "env": [flavour, "a b"],
        "cache": False,
    }


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("failed_command", ["RUN echo last words; exit 9", "exit code 9", "last words"]),
        ("failed_function", ["run_function(spoil) failed", "the oven is cold"]),
        ("alpine", ["python:3.12-alpine", "registry", "musl"]),
        ("micromamba", ["mambaorg/micromamba", "registry", "conda"]),
        ("unknown_line", ["FETCH", "Dockerfile line"]),
    ],
)
def test_what_cannot_be_built_says_why(
    checks: Checks, client: Client, check: str, words: list[str]
) -> None:
    error = checks.error(check)
    for word in words:
        assert word in error["message"]
    assert error["type"] == ("ImageBuildError" if client.release >= (1, 5, 4) else "RemoteError")


@pytest.mark.since("1.5.0")
def test_names_and_logs(checks: Checks, runner: Runner, client: Client) -> None:
    found, by_id, name, image_id = checks.value("names")
    assert (found, by_id) == ("published", "published")
    assert checks.error("no_name")["type"] == "NotFoundError"
    if client.release < (1, 6):
        return
    rows = json.loads(
        runner.cli(client, "image", "names", "list", "--prefix", name, "--json").succeeded().stdout
    )
    assert [(row["tag"], row["image_id"]) for row in rows] == [(f"{name}:v1", image_id)]
    history = json.loads(
        runner.cli(client, "image", "names", "history", f"{name}:v1", "--json").succeeded().stdout
    )
    assert [row["image_id"] for row in history] == [image_id]
    logs = runner.cli(client, "image", "logs", image_id).succeeded()
    assert "RUN echo published > /named" in logs.stdout
    runner.cli(client, "image", "names", "delete", f"{name}:v1", "--yes").succeeded()
    left = runner.cli(client, "image", "names", "list", "--prefix", name, "--json").succeeded()
    assert json.loads(left.stdout) == []


@pytest.mark.since("1.2.6")
def test_an_image_that_was_deleted_is_unknown(checks: Checks) -> None:
    assert checks.error("deleted")["type"] == "NotFoundError"
