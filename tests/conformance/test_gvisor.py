"""Sandboxes with a kernel of their own: the setting ``sandbox_runtime``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.gpus import FakeGpus
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import Server
from tests.conformance.test_sidecars import SIDECAR_CHECKS

from homeport.node.leaks import find_leaks
from homeport.node.trial import works

pytestmark = [pytest.mark.newest, pytest.mark.root]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of which nobody has said how it isolates sandboxes, on a machine with a GPU."""
    trial = asyncio.run(works(tmp_path_factory.mktemp("trial"), "runsc"))
    if trial.failure:
        pytest.skip(trial.failure)
    environ = {}
    if shutil.which("cc"):
        environ = FakeGpus(tmp_path_factory.mktemp("machine"), ["Tesla T4"]).environment()
    server = Server(tmp_path_factory.mktemp("gvisor"), environ, plain=False)
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
    if client.release < (1, 6, 4):
        pytest.skip("this client has not all of them")
    sidecars = runner.checks(client, "sidecars", script=True)
    assert sidecars.value(check) == expected


def test_it_ends(checks: Checks) -> None:
    assert checks.value("end")[2] == 137


@pytest.fixture
def kernels(runner: Runner, client: Client) -> Checks:
    return runner.checks(client, "isolation", script=True)


def kernel_of_machine() -> str:
    return Path("/proc/version").read_text().strip()


def test_it_is_the_default_where_it_works(kernels: Checks, guarded: Server) -> None:
    assert kernels.value("plain").startswith("Linux version")
    assert kernels.value("plain") != kernel_of_machine()
    state, found, _ = sandboxes_by_doctor(guarded)
    assert (state, found.startswith("runsc isolates them")) == ("ok", True), found


def test_what_it_cannot_do_is_done_without_it(kernels: Checks) -> None:
    if not shutil.which("cc"):
        pytest.skip("a GPU is made up with a C compiler, and there is none")
    box, side, device, *reached = kernels.value("with_gpu")
    assert (box, side) == (kernel_of_machine(), kernels.value("plain"))
    assert device == ["/dev/fakegpu0", 0]
    assert reached == ["200", "200"]


def test_memory_snapshots_need_no_setting(kernels: Checks) -> None:
    assert kernels.value("with_memory_snapshots") == [kernels.value("plain")] * 2


def sandboxes_by_doctor(server: Server) -> tuple[str, str, str]:
    """What ``homeport doctor`` says about them: state, what is so, what to do."""
    checks = json.loads(server.homeport("doctor", "--json").stdout)
    (check,) = (each for each in checks if each["name"] == "sandboxes")
    return check["state"], check["found"], check.get("fix", "")


def said_of_sandboxes(server: Server) -> list[dict[str, str]]:
    """The lines of the node's log about what isolates them, as soon as there is one."""
    lines: list[dict[str, str]] = []
    until = time.monotonic() + 60
    while not lines and time.monotonic() < until:
        text = "".join(p.read_text(errors="replace") for p in server.home.rglob("*.log"))
        said = [line for line in text.splitlines() if "sandboxes are isolated" in line]
        lines = [json.loads(line[line.index("{") :]) for line in said]
        time.sleep(0.1)
    return lines


def test_where_it_is_not_installed_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in map(Path, os.environ["PATH"].split(":")):
        for path in folder.iterdir() if folder.is_dir() else ():
            with contextlib.suppress(FileExistsError):
                if path.name != "runsc":
                    (programs / path.name).symlink_to(path)
    monkeypatch.setenv("PATH", str(programs))
    server = Server(tmp_path / "home", plain=False)
    server.start()
    try:
        (line,) = said_of_sandboxes(server)
        state, found, fix = sandboxes_by_doctor(server)
    finally:
        server.stop()
    assert (line["level"], line["runtime"]) == ("info", "bubblewrap"), line
    assert (state, "bubblewrap isolates them" in found) == ("ok", True), found
    assert "install gVisor" in fix


def test_what_does_not_work_is_replaced_only_if_none_was_named(
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
    server = Server(tmp_path / "auto", plain=False)
    server.start()
    try:
        (line,) = said_of_sandboxes(server)
        state, found, _ = sandboxes_by_doctor(server)
    finally:
        server.stop()
    assert (line["level"], line["runtime"]) == ("warning", "bubblewrap"), line
    assert "too old" in line["not_runsc"]
    assert (state, "too old" in found) == ("warning", True), found
