"""The command itself, as a process, with stand-ins for the server and for the official client."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from homeport.cli import fsck, official

from .conftest import Up

SECRET = "as-it's \\ $(secret)"
FAKE_CLIENT = """
import json, os, signal, sys
if sys.argv[1:2] == ["die"]:
    os.kill(os.getpid(), signal.SIGTERM)
print(json.dumps({
    "argv": sys.argv[1:], "stdin": "" if sys.stdin.isatty() else sys.stdin.read(),
    "python": sys.executable, "pid": os.getpid(),
    "env": {k: v for k, v in os.environ.items() if k.startswith("MODAL_")},
}))
sys.exit(int(os.environ.get("FAKE_EXIT", "0")))
"""


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with a ``modal`` that tells what it was given."""
    package = tmp_path / "fake" / "modal"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE_CLIENT)
    return package.parent


@pytest.fixture
def running(start_up: Callable[..., Up]) -> Up:
    up = start_up()
    up.expect("log ready")
    (up.home / "credentials.toml").write_text(
        f"token_id = 'ak-1'\ntoken_secret = {json.dumps(SECRET)}\n"
    )
    return up


def homeport(
    home: Path, *arguments: str, stdin: str = "", **env: str | Path
) -> subprocess.CompletedProcess[str]:
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith(("MODAL_", "VIRTUAL"))}
    surroundings |= {"HOMEPORT_HOME": str(home)} | {k: str(v) for k, v in env.items()}
    return subprocess.run(
        [sys.executable, "-m", "homeport.cli.main", *arguments],
        input=stdin,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "-d", "app.py::main", "--x", "1", "--", "--home", "y"),
        ("volume", "put", "data", "./a b", "/c"),
        ("container", "exec", "ta-1", "--", "ls", "--help"),
        ("some-later-command", "--anything"),
    ],
)
def test_a_command_of_the_official_cli_gets_everything(
    running: Up, client: Path, arguments: tuple[str, ...]
) -> None:
    done = homeport(running.home, *arguments, stdin="hello", PYTHONPATH=client, FAKE_EXIT="5")
    assert done.returncode == 5, done.stderr
    told = json.loads(done.stdout)
    assert told["argv"] == list(arguments)
    assert told["stdin"] == "hello"
    assert told["env"] == {
        "MODAL_SERVER_URL": f"http://127.0.0.1:{running.port}",
        "MODAL_TOKEN_ID": "ak-1",
        "MODAL_TOKEN_SECRET": SECRET,
        "MODAL_CONFIG_PATH": str(running.home / "modal.toml"),
    }
    assert done.stderr == ""


def test_the_command_becomes_the_client(running: Up, client: Path) -> None:
    assert homeport(running.home, "die", PYTHONPATH=client).returncode == -15


def test_settings_for_another_server_are_set_aside(running: Up, client: Path) -> None:
    elsewhere = {
        "MODAL_PROFILE": "work",
        "MODAL_TOKEN_ID": "ak-theirs",
        "MODAL_SERVER_URL": "https://elsewhere",
        "MODAL_OAUTH_CLIENT_ID": "x",
        "MODAL_ENVIRONMENT": "dev",
    }
    done = homeport(running.home, "app", "list", PYTHONPATH=client, **elsewhere)
    env = json.loads(done.stdout)["env"]
    assert "MODAL_PROFILE" not in env
    assert "MODAL_OAUTH_CLIENT_ID" not in env
    assert env["MODAL_ENVIRONMENT"] == "dev"
    assert env["MODAL_TOKEN_ID"] == "ak-1"


def test_a_config_path_of_the_user_stays(running: Up, client: Path) -> None:
    mine = {"MODAL_CONFIG_PATH": "/mine.toml", "MODAL_PROFILE": "work"}
    env = json.loads(homeport(running.home, "app", PYTHONPATH=client, **mine).stdout)["env"]
    assert env["MODAL_CONFIG_PATH"] == "/mine.toml"
    assert env["MODAL_PROFILE"] == "work"


def test_the_client_of_the_active_virtualenv_is_used(running: Up, client: Path) -> None:
    venv = client / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    assert official.client_command({"VIRTUAL_ENV": str(venv)})[0] == str(python)
    assert official.client_command({"VIRTUAL_ENV": str(client)})[0] == sys.executable
    assert official.client_command({"VIRTUAL_ENV": sys.prefix})[0] == sys.executable


@pytest.mark.parametrize("arguments", [("run", "--help"), ("config", "show"), ("app", "-h")])
def test_help_and_local_commands_start_nothing(
    tmp_path: Path, client: Path, arguments: tuple[str, ...]
) -> None:
    done = homeport(tmp_path / "home", *arguments, PYTHONPATH=client)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["argv"] == list(arguments)
    assert not (tmp_path / "home" / "logs" / "up.log").exists()


def test_env_can_be_evaluated_by_a_shell(running: Up) -> None:
    done = homeport(running.home, "env")
    lines = done.stdout.splitlines()
    assert [line.split("=")[0] for line in lines] == [
        "export MODAL_SERVER_URL",
        "export MODAL_TOKEN_ID",
        "export MODAL_TOKEN_SECRET",
    ]
    script = f'{done.stdout}\nprintf %s "$MODAL_TOKEN_SECRET"'
    assert subprocess.run(["sh", "-c", script], capture_output=True).stdout.decode() == SECRET


def test_env_speaks_fish_and_json(running: Up) -> None:
    fish = homeport(running.home, "env", "--shell", "fish").stdout
    assert f"set -gx MODAL_SERVER_URL 'http://127.0.0.1:{running.port}'\n" in fish
    assert "set -gx MODAL_TOKEN_SECRET 'as-it\\'s \\\\ $(secret)'\n" in fish
    assert json.loads(homeport(running.home, "env", "--json").stdout)["MODAL_TOKEN_ID"] == "ak-1"


def test_env_before_the_first_start_says_so(tmp_path: Path) -> None:
    done = homeport(tmp_path, "env")
    assert done.returncode == 1
    assert "no credentials" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_says_what_runs(running: Up) -> None:
    (running.home / "run" / "server.json").write_text(
        json.dumps({"pid": running.pid_of("server"), "port": running.port, "url": "http://x"})
    )
    found = json.loads(homeport(running.home, "status", "--json").stdout)
    assert found == {
        "status": "ok",
        "home": str(running.home),
        "url": f"http://127.0.0.1:{running.port}",
        "pid": running.process.pid,
        "server_pid": running.pid_of("server"),
        "node_pid": running.pid_of("node"),
        "nodes": 1,
        "version": "9.9",
    }
    assert "nodes:       1\n" in homeport(running.home, "status").stdout


def test_status_of_nothing_exits_3(tmp_path: Path) -> None:
    done = homeport(tmp_path, "status")
    assert done.returncode == 3
    assert "not running" in done.stdout


def test_down_stops_the_one_that_runs(running: Up) -> None:
    done = homeport(running.home, "down")
    assert (done.returncode, running.process.wait(10)) == (0, 0)
    assert done.stdout.startswith("Homeport is stopped")
    assert homeport(running.home, "down").stdout.startswith("Nothing runs")


def test_down_kills_one_that_does_not_stop(start_up: Callable[..., Up]) -> None:
    up = start_up(node="stubborn")
    up.expect("log ready")
    done = homeport(up.home, "down", "--grace", "0.2")
    assert done.returncode == 0
    assert "killing it" in done.stderr
    assert up.process.wait(10) == -9


def test_a_second_up_says_who_runs(running: Up) -> None:
    done = homeport(running.home, "up", "--port", "0")
    assert done.returncode == 1
    assert f"pid {running.process.pid} at http://127.0.0.1:{running.port}" in done.stderr


@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_a_port_in_use_is_said(tmp_path: Path, detach: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = homeport(tmp_path, "up", "--port", str(port), *detach)
    assert done.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use by another program." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in ("up", "run"):
        done = homeport(tmp_path / "file", command)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("homeport: ")
        assert "Traceback" not in done.stderr


def test_a_setting_that_does_not_fit_is_said(tmp_path: Path) -> None:
    done = homeport(tmp_path, "status", HOMEPORT_PORT="many")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "port" in done.stderr


def test_help_lists_what_the_official_cli_offers() -> None:
    from modal.cli.entry_point import entrypoint_cli

    offered = {name for name, command in entrypoint_cli.commands.items() if not command.hidden}
    assert offered == set(official.COMMANDS)


def test_help_lists_our_commands_first(tmp_path: Path) -> None:
    lines = homeport(tmp_path, "--help").stdout.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert names.index("up") < names.index("doctor") < names.index("run")


def test_damaged_credentials_are_said(tmp_path: Path) -> None:
    (tmp_path / "credentials.toml").write_text("token_id = 1\n")
    done = homeport(tmp_path, "env")
    assert done.returncode == 1
    assert "credentials.toml does not fit" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_fsck_finds_does_nothing_to_a_terminal() -> None:
    damage = fsck.Damage("data", "new\nline \x1b[31mred ☃", "is missing")
    assert fsck.line(damage) == "data: new\\nline \\x1b[31mred ☃: is missing"


def test_a_command_beside_the_clients_is_called_by_its_name(tmp_path: Path) -> None:
    assert "Usage: homeport volume fsck [" in homeport(tmp_path, "volume", "fsck", "--help").stdout
    assert "Usage: homeport image ls [" in homeport(tmp_path, "image", "ls", "--help").stdout
    done = homeport(tmp_path, "volume", "fsck")
    assert done.returncode == 1
    assert "was Homeport ever started there?" in done.stderr


@pytest.mark.parametrize("more", [(), ("--detach",)])
@pytest.mark.parametrize("url", ["", "mysql://host/x"])
def test_nobody_stands_by_without_a_database_to_share(
    tmp_path: Path, url: str, more: tuple[str, ...]
) -> None:
    settings = {"HOMEPORT_STANDBY": "true", "HOMEPORT_DATABASE_URL": url}
    done = homeport(tmp_path / "home", "up", "--port", "0", *more, **settings)
    assert done.returncode == 1
    assert "database_url" in done.stderr
    assert "stand" not in done.stdout
