"""Memory snapshots of sandboxes, which need gVisor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import GVISOR, Server

from homeport.node.leaks import find_leaks
from homeport.node.trial import works

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    trial = asyncio.run(works(tmp_path_factory.mktemp("trial"), "runsc"))
    if trial.failure:
        pytest.skip(trial.failure)
    server = Server(tmp_path_factory.mktemp("memory"), {"HOMEPORT_SANDBOX_RUNTIME": "runsc"})
    server.start()
    try:
        yield server
    finally:
        server.stop()
    assert find_leaks(server.home) == []


@pytest.fixture(scope="module", params=["v1", "v2"])
def of_generation(
    request: pytest.FixtureRequest, guarded: Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Runner, str]:
    return Runner(guarded, tmp_path_factory.mktemp(request.param)), request.param


@pytest.fixture
def checks(of_generation: tuple[Runner, str], client: Client) -> Checks:
    """What the program reported."""
    runner, generation = of_generation
    if generation == "v2" and client.release < (1, 5, 4):
        pytest.skip("this client takes memory snapshots of sandboxes of the first generation only")
    environ = {"MODAL_SANDBOX_V2": "0" if generation == "v1" else "1"}
    return runner.checks(client, "memory_snapshots", script=True, environ=environ)


@pytest.mark.skipif(GVISOR, reason="the suites are run with it")
def test_without_gvisor_there_are_none(runner: Runner, client: Client) -> None:
    checks = runner.checks(client, "memory_snapshots", "refused", script=True)
    assert "need gVisor" in checks.value("refused")[1]


def test_a_snapshot_ends_its_sandbox(checks: Checks) -> None:
    assert checks.value("before") == ["1 one", ["/root\n", 0]]
    assert checks.value("served_before") == "kept"
    assert checks.value("snapshot") == ["sn-", None, 137]


def test_several_sandboxes_go_on_from_it(checks: Checks) -> None:
    rest = [["kept\nhidden\n", 0], "kept", True]
    assert checks.value("second") == [True, "2 one two", *rest]
    assert checks.value("third") == [True, "2 one other", *rest]


def test_programs_in_a_restored_one(checks: Checks, client: Client) -> None:
    assert checks.value("much") == [1_000_000, "aside\n", 0]
    if client.release >= (1, 2):
        assert checks.value("terminal") == ["/dev/pts/", 3]


def test_a_restored_one_can_be_saved_again(checks: Checks) -> None:
    assert checks.value("fourth") == [True, "3 one other more", ["kept\nhidden\n", 0], "kept", True]


def test_names(checks: Checks, client: Client) -> None:
    if client.release < (1, 2):
        pytest.skip("this client has no names for sandboxes")
    assert checks.value("name") == checks.value("ids")[1]
    assert checks.value("taken") == "AlreadyExistsError"


def test_their_ends(checks: Checks) -> None:
    assert checks.value("end") == [7, "over\n"]
    assert checks.value("terminated") == [None, None, 137]


def test_what_cannot_be(checks: Checks) -> None:
    assert "_experimental_enable_snapshot" in checks.value("not_enabled")[1]
    failure, code = checks.value("deleted")
    assert "/root/gone open, which was deleted" in failure
    assert code == 137
    assert "volumes" in checks.value("with_volume")[1]
    assert checks.value("unknown") in ("NotFoundError", "GRPCError")  # the latter before 1.2


def test_it_outlives_the_death_of_everything(
    guarded: Server, client: Client, tmp_path: Path
) -> None:
    """Server and node are killed between a snapshot and what goes on from it."""
    saved = Runner(guarded, tmp_path).checks(client, "memory_snapshots", "save", script=True)
    said, snapshot_id = saved.value("saved")
    assert said == "1 one"
    guarded.crash()
    guarded.start()
    arguments = "memory_snapshots", "restore", snapshot_id
    checks = Runner(guarded, tmp_path).checks(client, *arguments, script=True)
    assert checks.value("restored") == ["2 one two", ["kept\n", 0]]
    assert checks.value("restored_again") == ["3 one two three", ["kept\n", 0]]
