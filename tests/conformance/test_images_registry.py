"""Images of a registry with accounts, and builds that would never end, on a disk that is small."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.registry import Registry, busybox_layout
from tests.conformance.harness.server import Server, server_with

pytestmark = pytest.mark.skipif(
    not (shutil.which("skopeo") and shutil.which("busybox")),
    reason="needs skopeo and busybox: scripts/setup containers tests",
)
ACCOUNT = '{"client_email": "a@b", "private_key": "-----BEGIN\\nx\\"y: z\\n"}'
DISK = "512m"
TOLD = {
    "/told": "from afar\n",
    # what old image builders call in every base
    "/bin/python": "#!/bin/sh\n",
    "/bin/uv": "#!/bin/sh\n",
    "/bin/pip": "#!/bin/sh\n",
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    passwords = {"me": "hush", "AWS": "a password of twelve hours", "_json_key": ACCOUNT}
    layout = busybox_layout(tmp_path_factory.mktemp("registry"), TOLD)
    with Registry(layout, passwords) as registry:
        yield registry


@pytest.fixture(scope="module")
def small(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose disk is small and whose builds have to be quick."""
    home = tmp_path_factory.mktemp("small")
    options = ["-t", "tmpfs", "-o", f"size={DISK}", "homeport-test", str(home)]
    subprocess.run(["mount", *options], check=True)
    try:
        environ = {
            "AWS_ENDPOINT_URL_ECR": f"http://{registry.address}/",
            "HOMEPORT_BUILD_TIMEOUT_S": "25",
            "HOMEPORT_PIDS_MAX": "200",
        }
        with server_with(home, environ) as server:
            yield server
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module")
def own(small: Server, folder: Path) -> Runner:
    return Runner(small, folder)


@pytest.fixture
def checks(own: Runner, registry: Registry, client: Client) -> Checks:
    environ = {"REGISTRY": registry.address}
    return own.checks(client, "images_registry", script=True, environ=environ)


@pytest.mark.parametrize(
    ("check", "told"),
    [("static", "from afar\nyes"), ("ecr", "from afar"), ("gcp", "from afar")],
)
def test_credentials_of_a_secret_open_it(
    checks: Checks, registry: Registry, check: str, told: str
) -> None:
    assert checks.value(check).split() == told.split()
    assert registry.users == {"me", "AWS", "_json_key"}


def test_a_dockerfile_has_them_too(checks: Checks) -> None:
    assert checks.value("dockerfile") in (None, "from afar\nmore")


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("static_wrong", ["static/img:v1", "could not be pulled"]),
        ("ecr_wrong", ["Amazon ECR refuses to sign in", "UnrecognizedClientException"]),
        ("ecr_role", ["AWS_ROLE_ARN", "use AWS_ACCESS_KEY_ID"]),
        ("nobody", ["nobody/img:v1", "could not be pulled"]),
        ("gone", ["127.0.0.1:1/team/img:v1", "cannot be reached"]),
        ("hangs", ["did not end within 25 seconds"]),
        ("fills", ["MiB left", "homeport image prune"]),
        ("forks", ["RUN f()", "fork"]),
    ],
)
def test_what_cannot_be_had_says_why(
    checks: Checks, client: Client, check: str, words: list[str]
) -> None:
    error = checks.error(check)
    for word in words:
        assert word in error["message"]
    assert error["type"] == ("ImageBuildError" if client.release >= (1, 5, 4) else "RemoteError")


def test_builds_that_were_ended_leave_nothing(checks: Checks, small: Server) -> None:
    assert checks.value("still").split() == ["from", "afar", "yes"]
    assert small.containers("bd-") == set()
    layers = small.home / "node" / "layers"
    assert [path.name for work in layers.glob(".work.*") for path in work.iterdir()] == []
    log = json.dumps(small.tail(2000))
    assert "a password of twelve hours" not in log
    assert "hush" not in log


def test_what_builds_keep_is_shown_and_deleted(checks: Checks, small: Server) -> None:
    assert checks.value("static")
    shown = json.loads(small.homeport("image", "caches", "--json").stdout)
    assert 0 < shown["caches"]["registry"] < shown["bytes_max"]
    found = json.loads(small.homeport("doctor", "--json").stdout)
    assert [check["state"] for check in found if check["name"] == "build caches"] == ["ok"]
    done = small.homeport("image", "prune", "--caches")
    assert done.returncode == 0, done.stderr
    assert "freed" in done.stderr
    left = json.loads(small.homeport("image", "caches", "--json").stdout)["caches"]
    assert left.get("registry", 0) < shown["caches"]["registry"]
