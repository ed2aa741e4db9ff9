"""Detached runs, and Ctrl-C at every stage: afterwards nothing of the app runs any more."""

from __future__ import annotations

import time

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner


def running(runner: Runner, client: Client, description: str) -> list[str]:
    """States of the apps of that name that are not stopped."""
    rows = runner.rows(client, "app", "list")
    named = [row for row in rows if description in row["description"]]
    assert named, f"{description} was never listed"
    return [row["state"] for row in named if row["state"] != "stopped"]


def app_id_in(output: str) -> str:
    """The app's id, from the line with its page."""
    return next(word for word in output.split("/") if word.startswith("ap-"))[:25]


def nothing_runs(runner: Runner, client: Client, description: str) -> bool:
    """Whether all of it, and any image build, is over within half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        containers = runner.rows(client, "container", "list")
        ours = [row for row in containers if description in row["app_name"]]
        builds = runner.server.containers("bd-")
        if not ours and not builds and not running(runner, client, description):
            return True
        time.sleep(0.5)
    return False


@pytest.mark.parametrize(
    ("target", "app", "sign"),
    [
        ("slow_build.py::never", "slow-build", "the build goes on"),
        ("slow_start.py::never", "slow-start", "importing slowly"),
        ("lifecycle.py::long_work", "lifecycle", "long work began"),
        ("lifecycle.py::long_work_async", "lifecycle", "long work began"),
        ("lifecycle.py::many", "lifecycle", "long work began"),
        ("lifecycle.py::stubborn", "lifecycle", "long work began"),
    ],
)
def test_interrupt(runner: Runner, client: Client, target: str, app: str, sign: str) -> None:
    done = runner.interrupted(client, target, when=lambda output: sign in output)
    assert done.returncode != 0 or "Aborting" in done.output or "Disconnecting" in done.output
    assert "Timed out waiting for" not in done.output
    assert nothing_runs(runner, client, f"conformance-{app}")


def test_interrupt_at_once(runner: Runner, client: Client) -> None:
    runner.interrupted(
        client, "lifecycle.py::many", when=lambda output: "/apps/ap-" in output, presses=3
    )
    assert nothing_runs(runner, client, "conformance-lifecycle")


def test_exit_handlers_run_when_the_app_is_interrupted(runner: Runner, client: Client) -> None:
    done = runner.interrupted(
        client, "lifecycle.py::Tidy.work", when=lambda output: "long work began" in output
    )
    assert "tidied up" in done.output
    assert nothing_runs(runner, client, "conformance-lifecycle")


def test_exit_handlers_run_when_the_app_is_stopped(runner: Runner, client: Client) -> None:
    started = runner.start(client, "lifecycle.py::Tidy.work")
    started.wait_for(lambda output: "long work began" in output)
    app_id = app_id_in(started.output())
    runner.cli(client, "app", "stop", app_id, *client.yes).succeeded()
    done = started.ended()
    assert done.returncode != 0
    assert "tidied up" in done.output
    assert "App stopped" in done.output
    assert nothing_runs(runner, client, "conformance-lifecycle")


def test_interrupt_of_a_script(runner: Runner, client: Client) -> None:
    started = runner.start_script(client, "lifecycle.py")
    started.wait_for(lambda output: "long work began" in output)
    assert "App aborted" in started.interrupt().output
    assert nothing_runs(runner, client, "conformance-lifecycle")


def test_detached_run_finishes_its_work(runner: Runner, client: Client) -> None:
    options = ["--detach"]
    done = runner.modal_run(client, "lifecycle.py::detached", options=options).succeeded()
    app_id = app_id_in(done.output)
    assert nothing_runs(runner, client, "conformance-lifecycle")
    if client.release >= (1, 4):
        logs = runner.cli(client, "app", "logs", app_id).succeeded()
        assert "short work ended" in logs.stdout


def test_stop_of_a_detached_run(runner: Runner, client: Client) -> None:
    done = runner.interrupted(
        client,
        "lifecycle.py::long_work",
        options=["--detach"],
        when=lambda output: "long work began" in output,
    )
    app_id = app_id_in(done.output)
    assert running(runner, client, "conformance-lifecycle") == ["ephemeral (detached)"]

    follow = ["--follow"] if client.release >= (1, 4) else []
    reader = runner.start_cli(client, "app", "logs", app_id, *follow)
    reader.wait_for(lambda output: "second" in output)
    assert "Traceback" not in reader.interrupt().output
    assert running(runner, client, "conformance-lifecycle") == ["ephemeral (detached)"]

    runner.cli(client, "app", "stop", app_id, *client.yes).succeeded()
    assert nothing_runs(runner, client, "conformance-lifecycle")
