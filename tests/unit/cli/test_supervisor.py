from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from homeport.cli import instance
from homeport.cli.supervisor import RestartBudget
from homeport.settings import load

from .conftest import Up, is_alive, wait_for

StartUp = Callable[..., Up]


def test_ready_is_said_once_the_node_is_connected(start_up: StartUp) -> None:
    up = start_up()
    up.expect("log ready nodes=1")
    assert [line.split()[0] for line in up.events()[:2]] == ["server", "node"]


def test_the_record_tells_who_runs(start_up: StartUp) -> None:
    up = start_up()
    up.expect("log ready")
    record = instance.find_up(load(up.home))
    assert record == instance.UpRecord(
        pid=up.process.pid,
        url=f"http://127.0.0.1:{up.port}",
        ready=True,
        server_pid=up.pid_of("server"),
        node_pid=up.pid_of("node"),
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_node_then_the_server(start_up: StartUp, number: int) -> None:
    up = start_up()
    up.expect("log ready")
    assert up.stop(number) == 0
    stops = [line for line in up.events() if line.endswith("stop")]
    assert stops == ["node stop", "server stop"]
    assert instance.find_up(load(up.home)) is None


def test_a_stop_signal_while_starting_ends_what_was_started(start_up: StartUp) -> None:
    up = start_up(node="stubborn", grace_s=0.2)
    up.expect("node start")
    assert up.stop() == 0
    assert not is_alive(up.pid_of("server"))
    assert not is_alive(up.pid_of("node"))


def test_a_child_that_does_not_stop_is_killed(start_up: StartUp) -> None:
    up = start_up(node="stubborn", grace_s=0.2)
    up.expect("log ready")
    assert up.stop() == 0
    up.expect("log the node did not stop within 0 s: killed")
    assert not is_alive(up.pid_of("node"))


@pytest.mark.parametrize("name", ["server", "node"])
def test_a_crashed_child_is_started_again(start_up: StartUp, name: str) -> None:
    up = start_up()
    up.expect("log ready")
    first = up.pid_of(name)
    os.kill(first, signal.SIGKILL)
    up.expect(f"log the {name} ended (killed by SIGKILL); starting it again in 0.01 s (1 of 5")
    wait_for(lambda: up.pid_of(name) != first, "a second start")
    wait_for(lambda: _recorded(up, name) == up.pid_of(name), "the new pid in the record")
    assert up.stop() == 0


def _recorded(up: Up, name: str) -> int:
    record = instance.find_up(load(up.home))
    return getattr(record, f"{name}_pid") if record else 0


def test_it_gives_up_on_a_child_that_keeps_crashing(start_up: StartUp) -> None:
    up = start_up(node="crash")
    assert up.process.wait(60) == 1
    events = up.events()
    if any("log ready" in line for line in events):  # it may crash before it was connected
        assert "log The node ended 6 times within 60 s (last: exit code 7); giving up." in events
        assert sum(line.startswith("node start") for line in events) == 6
    else:
        assert "log The node ended while starting (exit code 7)." in events
    assert not is_alive(up.pid_of("server"))


@pytest.mark.parametrize("name", ["server", "node"])
def test_a_child_that_fails_to_start_is_not_tried_again(start_up: StartUp, name: str) -> None:
    up = start_up(**{name: "fail"})
    assert up.process.wait(60) == 1
    assert f"log The {name} ended while starting (exit code 2)." in up.events()
    assert sum(line.startswith(f"{name} start") for line in up.events()) == 1


def test_children_end_when_the_supervisor_is_killed(start_up: StartUp) -> None:
    up = start_up()
    up.expect("log ready")
    up.process.kill()
    for name in ("server", "node"):
        wait_for(lambda name=name: not is_alive(up.pid_of(name)), f"the end of the {name}")


def test_the_budget_doubles_the_delay_and_ends() -> None:
    budget = RestartBudget(limit=3, window_s=60, first_delay_s=0.5)
    assert [budget.take(t) for t in (0.0, 1.0, 2.0, 3.0)] == [0.5, 1.0, 2.0, None]


def test_the_budget_forgets_restarts_older_than_the_window() -> None:
    budget = RestartBudget(limit=1, window_s=60, first_delay_s=0.5)
    assert budget.take(0.0) == 0.5
    assert budget.take(59.0) is None
    assert budget.take(61.0) == 0.5
