"""Untrusted code in a sandbox, and the host that it finds no way to."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import GVISOR, Server

pytestmark = pytest.mark.newest
SECRET = "only the host may read this"
PIDS_MAX = 200


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose containers have few processes each."""
    server = Server(tmp_path_factory.mktemp("guarded"), {"HOMEPORT_PIDS_MAX": str(PIDS_MAX)})
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hidden") / "secret"
    path.write_text(SECRET)
    return path


@pytest.fixture(scope="module")
def host() -> dict[str, str]:
    """What of this machine may not have changed afterwards."""
    return {"hostname": socket.gethostname(), "core": Path(CORE).read_text()}


CORE = "/proc/sys/kernel/core_pattern"


@pytest.fixture(scope="module")
def runner(guarded: Server, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(guarded, tmp_path_factory.mktemp("escapes"))


@pytest.fixture
def checks(runner: Runner, client: Client, hidden: Path, host: dict[str, str]) -> Checks:
    assert host
    return runner.checks(client, "escapes", str(hidden), script=True)


@pytest.mark.parametrize("check", ["host_files", "racing_links"])
def test_no_way_to_files_of_the_host(checks: Checks, check: str, hidden: Path) -> None:
    assert SECRET not in json.dumps(checks.value(check))
    assert hidden.read_text() == SECRET


def test_links_were_raced(checks: Checks) -> None:
    assert repr("own\n") in checks.value("racing_links")


def test_the_kernel_keeps_its_settings(checks: Checks, host: dict[str, str]) -> None:
    if not GVISOR:  # whose kernel, and so its settings, are the container's own
        assert [path for path, code in checks.value("kernel_settings").items() if code == 0] == []
    assert {"hostname": socket.gethostname(), "core": Path(CORE).read_text()} == host


def test_devices_do_not_open(checks: Checks) -> None:
    assert "opened" not in checks.value("devices")[1]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of another architecture")
def test_system_calls_are_refused(checks: Checks) -> None:
    code, text = checks.value("system_calls")
    assert code == 0, text
    found = json.loads(text)
    if GVISOR:  # its own kernel answers these, and nothing of the host is there to be had
        assert found["open_by_handle_at"] != 0
        assert found["setns"] != 0
        return
    refused = (errno.EPERM, errno.ENOSYS)
    assert {name: code for name, code in found.items() if code not in refused} in (
        {},
        {"chroot_out": 0},  # it stays in the container's own root
        {"chroot_out": errno.EACCES},
    )


def test_the_first_process_is_out_of_reach(checks: Checks) -> None:
    _, environment, after = checks.value("process_one")
    assert GVISOR or environment.strip().endswith("0") or "denied" in environment
    assert after == [0, ""]


def test_the_launcher_is_no_way_out(checks: Checks) -> None:
    assert set(checks.value("working_directory")) == {"InvalidError"}
    assert checks.value("own_program") == [True, True]


def test_no_new_rights(checks: Checks) -> None:
    assert checks.value("more_rights") != 0


def test_the_file_server_is_not_seen_and_not_broken(checks: Checks) -> None:
    assert checks.value("unseen_helpers") == "0\n"
    ends, text = checks.value("bad_file_commands")
    assert 0 not in ends
    assert text == "alive"


def test_bombs_go_off_inside(checks: Checks) -> None:
    if GVISOR:  # no limit of its own: the bomb may end its sandbox, and does no more
        assert checks.value("fork_bomb")
        assert checks.value("memory_bomb") in (1, 137)  # a MemoryError, or killed
        return
    (count, number), refused, files = checks.value("fork_bomb")
    assert (int(count) < PIDS_MAX, int(number)) == (True, errno.EAGAIN)
    assert refused[0] in ("ResourceExhaustedError", "nothing")
    assert files
    assert checks.value("memory_bomb") == 137


def test_the_sandbox_is_still_there(checks: Checks) -> None:
    assert checks.value("still_there") == [0, "yes\n"]
