"""The command with the real server and node."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from homeport.node import leaks
from homeport.storage import migrations

from .conftest import is_alive, wait_for

pytestmark = pytest.mark.root
REVISIONS = Path(migrations.__file__).parent / "versions"


class Home:
    """A home on a free port; commands run against it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_")}
        self._env |= {"HOMEPORT_HOME": str(folder), "HOMEPORT_PORT": "0"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "homeport.cli.main", *arguments],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def status(self) -> dict[str, object]:
        return json.loads(self.run("status", "--json").stdout)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "home")
    yield home
    assert home.run("down").returncode == 0
    assert home.status()["status"] == "not running"


def test_a_command_starts_what_it_needs(home: Home) -> None:
    done = home.run("app", "list", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr
    assert done.stderr.startswith("Starting Homeport in the background")
    assert " is ready at http://127.0.0.1:" in done.stderr
    assert home.run("app", "list", "--json").stderr == ""


def test_two_commands_at_once_start_one_homeport(home: Home) -> None:
    both = [home.start("environment", "list", "--json") for _ in range(2)]
    outcomes = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outcomes
    ready = [line for _, err in outcomes for line in err.splitlines() if " is ready at " in line]
    assert len(ready) == 1


def test_up_detach_says_when_it_is_ready_and_a_second_one_who_runs(home: Home) -> None:
    done = home.run("up", "--detach")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Try: homeport run examples/hello.py\n")
    status = home.status()
    assert (status["status"], status["nodes"]) == ("ok", 1)
    again = home.run("up", "--detach")
    assert again.returncode == 1
    assert f"pid {status['pid']} at {status['url']}" in again.stderr


@pytest.mark.parametrize("part", ["server", "node"])
def test_a_killed_part_comes_back_on_the_same_url(home: Home, part: str) -> None:
    home.run("up", "--detach")
    before = home.status()
    os.kill(int(str(before[f"{part}_pid"])), signal.SIGKILL)

    def is_back() -> bool:
        now = home.status()
        changed = now.get(f"{part}_pid", 0) not in (0, before[f"{part}_pid"])
        return changed and now["status"] == "ok" and now["nodes"] == 1

    wait_for(is_back, f"the {part} again")
    assert home.status()["url"] == before["url"]
    assert home.run("app", "list", "--json").returncode == 0


def test_while_the_server_is_started_again_connections_wait(home: Home) -> None:
    home.run("up", "--detach")
    before = home.status()
    port = int(str(before["url"]).rpartition(":")[2])
    os.kill(int(str(before["server_pid"])), signal.SIGKILL)
    for _ in range(20):  # from before it is gone until after it is back
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):  # it was accepted just before the end
                connection.recv(1)
    assert home.run("app", "list", "--json").returncode == 0


def test_after_up_was_killed_the_next_one_starts(home: Home) -> None:
    home.run("up", "--detach")
    before = home.status()
    os.kill(int(str(before["pid"])), signal.SIGKILL)
    assert home.run("up", "--detach").returncode == 0
    for part in ("server", "node"):
        assert not is_alive(int(str(before[f"{part}_pid"])))


def test_what_a_node_killed_at_the_end_left_is_undone(home: Home) -> None:
    home.run("up", "--detach")
    before = home.status()
    shared = [line for line in leaks.find_leaks(home.folder) if "process" not in line]
    assert shared, "a running node has a control group and a firewall table"
    os.kill(int(str(before["node_pid"])), signal.SIGSTOP)  # so that it cannot do it itself
    os.kill(int(str(before["pid"])), signal.SIGTERM)
    os.kill(int(str(before["node_pid"])), signal.SIGKILL)
    wait_for(lambda: not is_alive(int(str(before["pid"]))), "the end of homeport up")
    assert leaks.find_leaks(home.folder) == []


@pytest.mark.skipif(not any(REVISIONS.glob("*.py")), reason="the schema has no revision yet")
def test_a_database_of_a_later_release_is_said_in_one_sentence(home: Home) -> None:
    home.run("up", "--detach")
    home.run("down")
    with sqlite3.connect(home.folder / "homeport.db") as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32))")
        connection.execute("DELETE FROM alembic_version")
        connection.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
    done = home.run("up", "--detach")
    assert done.returncode == 1
    assert "was written by a newer Homeport" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_checks_this_machine(home: Home) -> None:
    done = home.run("doctor")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("\nFunction containers can run on this machine.\n")
    checks = json.loads(home.run("doctor", "--json").stdout)
    assert "container" in [check["name"] for check in checks]
    assert not home.folder.exists()


def test_doctor_exits_1_when_containers_cannot_run(home: Home) -> None:
    home.folder.mkdir()
    (home.folder / "homeport.toml").write_text("default_runtime = 'lxc'\n")
    done = home.run("doctor")
    assert done.returncode == 1
    assert "✗ container" in done.stdout
    assert "cannot run on this machine" in done.stdout
