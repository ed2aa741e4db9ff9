"""The first thing a reader does."""

from __future__ import annotations

from pathlib import Path

from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Completed, Runner
from tests.conformance.harness.server import Server

_runs: dict[str, Completed] = {}


def hello(runner: Runner, client: Client) -> Completed:
    if client.version not in _runs:
        _runs[client.version] = runner.modal_run(client, "hello.py")
    return _runs[client.version].succeeded()


def test_result_is_printed(runner: Runner, client: Client) -> None:
    assert "the square is 1764" in hello(runner, client).stdout


def test_output_of_the_container_is_shown(runner: Runner, client: Client) -> None:
    output = hello(runner, client).output
    assert "This line comes from a container" in output
    assert "and this one from its stderr" in output


def test_link_to_the_app_is_shown(runner: Runner, client: Client, server: Server) -> None:
    assert f"{server.url}/apps/ap-" in hello(runner, client).output.replace("\n", "")


def test_end_of_logs_arrives(runner: Runner, client: Client) -> None:
    output = hello(runner, client).output
    assert "Timed out waiting for" not in output
    assert "App completed" in output


def test_function_can_be_run_directly(runner: Runner, client: Client) -> None:
    done = runner.modal_run(client, "hello.py::square", "--x", "3").succeeded()
    assert "This line comes from a container" in done.stdout


def test_quiet(runner: Runner, client: Client) -> None:
    done = runner.modal_run(client, "hello.py", options=["--quiet"]).succeeded()
    assert "the square is 1764" in done.stdout
    assert "App completed" not in done.output


def test_write_result(runner: Runner, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "result"
    runner.modal_run(client, "hello.py::text", options=["-w", str(file)]).succeeded()
    assert file.read_text() == "written by a function"


def test_as_a_plain_script(runner: Runner, client: Client) -> None:
    done = runner.script(client, "hello.py").succeeded()
    assert done.stdout.strip() == "the square is 1764"
