"""Secrets are in no log, in no file and in no row as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.harness.bare import BareServer

VALUE = "marker-4f1d0c7e-value"
PROGRAM = f"""
import modal

modal.Secret.objects.create("kept", {{"KEY": "{VALUE}"}})
modal.Secret.from_name("kept", required_keys=["KEY"]).hydrate()
app = modal.App.lookup("one", create_if_missing=True)
modal.Secret.from_dict({{"KEY": "{VALUE}"}}).hydrate()
try:
    modal.Secret.from_name("absent").hydrate()
except modal.exception.NotFoundError:
    print("done")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a server leaves that was given a secret, with everything logged."""
    server = BareServer(
        tmp_path_factory.mktemp("secrets") / "home", {"HOMEPORT_LOG_LEVEL": "debug"}
    )
    server.start()
    environ = {**server.environment(), "MODAL_CONFIG_PATH": "/nonexistent", "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "done", done.stderr
    wrong = {**environ, "MODAL_TOKEN_SECRET": f"as-{VALUE}"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=wrong, capture_output=True, timeout=120)
    yield server.home
    server.stop()


def files(home: Path) -> Iterator[tuple[str, bytes]]:
    for folder, _, names in os.walk(home):
        for name in names:
            path = Path(folder, name)
            if path.is_file():
                yield str(path.relative_to(home)), path.read_bytes()


def test_values_of_secrets_are_nowhere(home: Path) -> None:
    assert {name for name, data in files(home) if VALUE.encode() in data} == set()


@pytest.mark.parametrize("kind", ["token_secret", "node_token"])
def test_tokens_are_in_the_owners_file_only(home: Path, kind: str) -> None:
    known = tomllib.loads((home / "credentials.toml").read_text())
    secret = known[kind].rpartition(".")[2].encode()
    assert {name for name, data in files(home) if secret in data} == {"credentials.toml"}


def test_what_is_secret_is_the_owners_alone(home: Path) -> None:
    secret = [home / "credentials.toml", *home.glob("*.key")]
    assert len(secret) > 3
    assert {oct(path.stat().st_mode & 0o777) for path in secret} == {"0o600"}
