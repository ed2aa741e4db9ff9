"""The JavaScript client against the same server; where Node.js is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.harness.clients import Client, cache
from tests.conformance.harness.programs import PROGRAMS, Runner

VERSION = "0.11.1"
pytestmark = [
    pytest.mark.newest,
    pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="no Node.js"),
]


@pytest.fixture(scope="module")
def package() -> Path:
    """A folder with the client installed, once a machine."""
    folder = cache() / f"javascript-{VERSION}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--silent", "--ignore-scripts", f"modal@{VERSION}"]
        subprocess.run(command, cwd=folder, check=True, timeout=300)
        (folder / "ready").touch()
    return folder


@pytest.fixture(scope="module")
def found(
    runner: Runner, client: Client, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the program reported."""
    deployed = runner.cli(client, "deploy", str(PROGRAMS / "squares.py"))
    assert deployed.returncode == 0, deployed.stderr
    program = package / "program.mjs"  # a program finds packages beside itself
    program.write_text((PROGRAMS / "javascript.mjs").read_text())
    done = subprocess.run(
        ["node", str(program), str(runner.server.home / "ca.pem")],
        cwd=tmp_path_factory.mktemp("javascript"),
        env={**os.environ, **runner.server.environment()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("streams", "over and back\n"),
        ("exec", ["42\n", 3]),
        ("files", "some text"),
        ("bytes", [[0, 255, 10, 13, 200]] * 2),
        (
            "more_files",
            [
                [["e", "directory"], ["f", "file"]],
                9,
                "0644",
                "from here",
                "SandboxFilesystemNotFoundError",
            ],
        ),
        ("exec_options", ["hallo secret /usr\n", "err\n", "terminal"]),
        ("stdin", ["a\nb\n", 0]),
        ("exec_timeout", 137),
        ("snapshot", ["some text", 0]),
        ("names_and_tags", [True, [True], None, "AlreadyExistsError", 137]),
        ("ready", "ready"),
        ("networks", [True, False]),
        ("connect_token", [200, 401]),
        ("terminate", 137),
        ("tunnel", 200),
        ("remote", 49),
        ("spawn", 81),
        ("queue", [1, "two", [3]]),
        ("volume", 0),
    ],
)
def test_javascript(found: dict[str, Any], check: str, expected: object) -> None:
    assert found[check] == expected


def test_errors_are_of_its_own_kinds(found: dict[str, Any]) -> None:
    assert "No such file" in found["no_program"], found["no_program"]
    assert found["remote_error"].startswith("RemoteError: ")
    assert "TypeError" in found["remote_error"]
    assert found["unknown_function"].startswith("NotFoundError: ")
