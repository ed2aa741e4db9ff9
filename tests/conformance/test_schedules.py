"""Functions that run by the clock, on a server whose clock the test sets."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.clocked import ClockedServer
from tests.conformance.harness.programs import PROGRAMS, Runner

MORNING = datetime(2027, 3, 27, 8, 10, tzinfo=UTC).timestamp()
"""The day before summer time begins in Berlin."""
HOUR = 3600.0
KILLS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClockedServer]:
    server = ClockedServer(tmp_path_factory.mktemp("clocked"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def runner(server: ClockedServer, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(server, tmp_path_factory.mktemp("clients"))


class Scheduled:
    """A deployed app and the runs its functions made."""

    def __init__(self, server: ClockedServer, runner: Runner, client: Client, name: str) -> None:
        self.server, self.runner, self.client = server, runner, client
        self.name = f"{name}-{client.version.replace('.', '-')}"

    def deploy(self, cron: str = "0 * * * *") -> None:
        file = str(PROGRAMS / "scheduled.py")
        environ = {"SCHEDULED_NAME": self.name, "SCHEDULED_CRON": cron}
        self.runner.cli(self.client, "deploy", file, environ=environ).succeeded()

    def runs(self, expected: int) -> Counter[str]:
        """How many there were of each function; each must be a call of its own."""
        done = self.runner.script(self.client, "scheduled_runs.py", self.name, str(expected))
        found = json.loads(done.succeeded().stdout)
        calls = [call for _, call in found]
        assert len(calls) == len(set(calls)), found
        return Counter(kind for kind, _ in found)

    def stop(self) -> None:
        self.runner.cli(self.client, "app", "stop", self.name, *self.client.yes).succeeded()


def test_cron_and_period(server: ClockedServer, runner: Runner, client: Client) -> None:
    app = Scheduled(server, runner, client, "by-the-clock")
    server.set_clock(MORNING)
    app.deploy()
    assert app.runs(0) == {}
    server.set_clock(MORNING + 0.8 * HOUR)  # 08:58
    assert app.runs(1) == {"period": 1}
    server.set_clock(MORNING + 0.9 * HOUR)  # 09:04
    assert app.runs(2) == {"period": 1, "cron": 1}
    app.deploy()  # the period goes on: next at 09:40, as if nothing had been
    server.set_clock(MORNING + 1.55 * HOUR)  # 09:43
    assert app.runs(3) == {"period": 2, "cron": 1}
    server.set_clock(MORNING + 1.2 * HOUR)  # the clock is put right: nothing is run again
    server.set_clock(MORNING + 1.7 * HOUR)
    assert app.runs(3) == {"period": 2, "cron": 1}
    app.deploy("0 3 * * *")  # 03:00 in Berlin: 01:00 UTC from tomorrow on
    server.set_clock(MORNING + 16.7 * HOUR)  # 00:52; many periods are passed over but the last
    assert app.runs(4) == {"period": 3, "cron": 1}
    server.set_clock(MORNING + 16.9 * HOUR)  # 01:04
    assert app.runs(5) == {"period": 3, "cron": 2}
    if client.release >= (1, 6):
        told = runner.cli(client, "app", "info", app.name, "--json").succeeded()
        functions = json.loads(told.stdout)["functions"]
        assert functions["by_cron"]["summary"]["schedule"]["cron"]["cron_string"] == "0 3 * * *"
        assert functions["by_period"]["summary"]["schedule"]["period"] == {"minutes": 45}
    if client.release >= (1, 4):
        logs = runner.cli(client, "app", "logs", app.name).succeeded()
        assert "Scheduled runs of 'by_period' were missed" in logs.stdout
    app.stop()
    server.set_clock(MORNING + 72 * HOUR)
    assert app.runs(5) == {"period": 3, "cron": 2}


def test_run_does_not_follow_schedules(
    server: ClockedServer, runner: Runner, client: Client
) -> None:
    app = Scheduled(server, runner, client, "only-run")
    server.set_clock(MORNING)
    file = str(PROGRAMS / "scheduled.py")
    environ = {"SCHEDULED_NAME": app.name}
    runner.cli(client, "run", f"{file}::by_period", environ=environ).succeeded()
    server.set_clock(MORNING + 24 * HOUR)
    assert app.runs(1) == {"period": 1}


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("cron", "'61 * * * *' cannot be read"),
        ("fields", "has 3 fields"),
        ("zone", "'Middle/Earth' is not known"),
        ("period", "shorter than 1 s"),
    ],
)
def test_bad_schedule_is_refused(runner: Runner, client: Client, check: str, words: str) -> None:
    error = runner.checks(client, "scheduled_badly", script=True).error(check)
    assert "InvalidError" in error["bases"]
    assert words in error["message"]


@pytest.mark.newest
def test_killed_while_it_is_time(server: ClockedServer, runner: Runner, client: Client) -> None:
    """Each due moment gives one run, however the server dies around it."""
    app = Scheduled(server, runner, client, "killed")
    server.set_clock(MORNING)
    app.deploy()
    chance = random.Random(7)
    for number in range(1, KILLS + 1):
        server.set_clock(MORNING + (24 * number + 0.2) * HOUR)
        time.sleep(chance.uniform(0, 0.03))
        server.kill()
        server.start()
        assert app.runs(2 * number) == {"cron": number, "period": number}
    app.stop()
