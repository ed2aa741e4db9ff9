"""Sandboxes with a kernel of their own: the setting ``sandbox_runtime``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import Server
from tests.conformance.test_sidecars import SIDECAR_CHECKS

from homeport.node.leaks import find_leaks
from homeport.node.trial import works

pytestmark = [pytest.mark.newest, pytest.mark.root]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    trial = asyncio.run(works(tmp_path_factory.mktemp("trial"), "runsc"))
    if trial.failure:
        pytest.skip(trial.failure)
    server = Server(tmp_path_factory.mktemp("gvisor"), {"HOMEPORT_SANDBOX_RUNTIME": "auto"})
    server.start()
    try:
        yield server
    finally:
        server.stop()
    assert find_leaks(server.home) == []


@pytest.fixture(scope="module")
def runner(guarded: Server, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(guarded, tmp_path_factory.mktemp("client"))


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    return runner.checks(client, "gvisor", script=True)


def test_the_kernel_is_gvisors(checks: Checks, guarded: Server) -> None:
    text, code = checks.value("kernel")
    assert (code, "gVisor" in text) == (0, True), text
    assert (guarded.home / "node/runtime-sandboxes/runsc").is_dir()


def test_programs_files_terminals_and_ports(checks: Checks) -> None:
    assert checks.value("exits") == [7, 137]
    assert checks.value("no_program") != "nothing"
    assert checks.value("files") == [["outside", 0], "inside\n", "outside"]
    (name,), last, code = checks.value("terminal")
    assert (name[:9], last, code) == ("/dev/pts/", "got words", 0)
    assert checks.value("tunnel") == "homeport"


def test_what_it_wrote_is_kept(checks: Checks) -> None:
    assert checks.value("snapshot") == "inside\n"
    assert checks.value("volume") == "kept\n"


@pytest.mark.parametrize(("check", "expected"), SIDECAR_CHECKS)
def test_sidecars_are_as_elsewhere(
    runner: Runner, client: Client, check: str, expected: object
) -> None:
    sidecars = runner.checks(client, "sidecars", script=True)
    assert sidecars.value(check) == expected


def test_it_ends(checks: Checks) -> None:
    assert checks.value("end")[2] == 137


def test_what_does_not_work_is_replaced_only_if_that_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "bin/runsc"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho runsc version 0.0~20221219.0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{old.parent}:{os.environ['PATH']}")
    server = Server(tmp_path / "asked", {"HOMEPORT_SANDBOX_RUNTIME": "runsc"})
    with pytest.raises(AssertionError, match="too old; install"):
        server.start()
    server = Server(tmp_path / "auto", {"HOMEPORT_SANDBOX_RUNTIME": "auto"})
    server.start()
    try:
        logs = "".join(p.read_text(errors="replace") for p in server.home.rglob("*.log"))
    finally:
        server.stop()
    assert "sandboxes are isolated" in logs
    assert "too old" in logs
