"""GPUs, on a machine that only seems to have some (see ``harness/gpus.py``)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.gpus import FakeGpus
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import server_with

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
PROGRAM = "gpus"
LARGE = "NVIDIA A100-SXM4-80GB"
NAMES = ["Tesla T4", LARGE, LARGE, "NVIDIA GeForce RTX 4090"]
T4 = [["0"], "GPU-fake-0", 42]
HAVE = "2 × A100-80GB, 1 × RTX-4090, 1 × T4"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A server whose node has four GPUs."""
    machine = FakeGpus(tmp_path_factory.mktemp("machine"), NAMES)
    with server_with(tmp_path_factory.mktemp("gpus"), machine.environment()) as server:
        yield Runner(server, tmp_path_factory.mktemp("gpu-clients"))


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("one", T4),
        ("baked", repr(T4)),
        ("two", [["1", "2"], "GPU-fake-1,GPU-fake-2", 42]),
        ("fallback", [["1", "2"], "GPU-fake-1,GPU-fake-2", 42]),
        ("by_name", [["3"], "GPU-fake-3", 42]),
        ("without", [[], "", 0]),
        ("class", T4),
        ("with_options", [["3"], "GPU-fake-3", 42]),
        ("exclusive", [["0"], []]),
    ],
)
def test_a_container_has_what_it_asked_for_and_no_more(
    checks: Checks, check: str, expected: object
) -> None:
    assert checks.value(check) == expected


def test_any_is_one_of_the_small_ones(checks: Checks) -> None:
    devices, visible, answer = checks.value("whichever")
    assert devices in (["0"], ["3"])
    assert (visible, answer) == (f"GPU-fake-{devices[0]}", 42)


@pytest.mark.parametrize(
    ("check", "asked"),
    [
        ("unknown", "NOSUCHGPU"),
        ("too_many", "A100:3"),
        ("unknown_list", "H100 or B200:8"),
        ("unknown_option", "H100"),
        ("unknown_sandbox", "H100"),
        ("unknown_step", "H100"),
    ],
)
def test_what_no_machine_has_is_refused_at_once(
    checks: Checks, client: Client, check: str, asked: str
) -> None:
    error = checks.error(check)
    # older clients let what they get from these two RPCs through as it is
    raw = client.release < (1, 6) and check in ("unknown_option", "unknown_sandbox")
    assert "InvalidError" in error["bases"] or (raw and error["type"] == "GRPCError"), error
    assert f"asks for the GPU {asked}, and no node has that" in error["message"]
    assert HAVE in error["message"]


def test_sandboxes_wait_for_a_gpu_and_others_do_not_wait_behind_them(checks: Checks) -> None:
    found = checks.value("sandboxes")
    assert found["holds"] == ["fakegpu0", "GPU-fake-0"]
    assert found["exec"] == ["fakegpu0", "GPU-fake-0", "library"]
    assert found["plain"] == ["0"]
    assert found["waits"] == [True, ["fakegpu0", "GPU-fake-0"]]


def test_an_idle_container_makes_way_for_a_sandbox(checks: Checks) -> None:
    assert checks.value("sandbox_after_call") == [["0"], ["fakegpu0"]]


@pytest.mark.newest
def test_they_are_listed(runner: Runner, client: Client) -> None:
    status = json.loads(runner.server.homeport("status", "--json").stdout)
    assert status["gpus"] == HAVE
    looked = json.loads(runner.server.homeport("doctor", "--json", timeout_s=300).stdout)
    (found,) = [check["found"] for check in looked if check["name"] == "GPUs"]
    assert "0: Tesla T4 as T4" in found
    assert "3: NVIDIA GeForce RTX 4090 as RTX-4090" in found


@pytest.mark.newest
@pytest.mark.parametrize("part", ["server", "node"])
def test_a_kill_gives_no_gpu_to_two(runner: Runner, client: Client, part: str) -> None:
    started = runner.start(client, f"{PROGRAM}.py", "--held")
    started.wait_for(lambda output: "first has the GPU" in output)
    runner.server.kill(part)
    found = started.checks()
    _, devices, began, ended = found.value("running")
    _, others, other_began, other_ended = found.value("other")
    assert devices == others == ["0"]
    assert other_began >= ended or other_ended <= began
    if part == "server":
        assert other_began >= ended, "the GPU was known to be in use"
    assert found.value("afterwards") == T4
