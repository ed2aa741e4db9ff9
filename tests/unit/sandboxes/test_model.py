"""The rules of sandboxes."""

from __future__ import annotations

import re

import msgspec
import pytest

from homeport.kernel.errors import InvalidError, UnimplementedError
from homeport.link.messages import (
    STATUS_FAILURE,
    STATUS_IDLE_TIMEOUT,
    STATUS_INIT_FAILURE,
    STATUS_INTERNAL_FAILURE,
    STATUS_OUT_OF_MEMORY,
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    STATUS_TIMEOUT,
    ImageConfig,
    ProbeRef,
    TaskExited,
)
from homeport.sandboxes.launcher import command_of
from homeport.sandboxes.model import (
    Port,
    SandboxSpec,
    check_name,
    check_spec,
    check_tags,
    new_ids,
    result_of,
)

SPEC = SandboxSpec(image_id="im-1", timeout_s=5.0, idle_timeout_s=2.0)


def exited(returncode: int = 0, **changes: object) -> TaskExited:
    report = TaskExited(
        seq=1,
        task_id="ta-1",
        returncode=returncode,
        oom_killed=False,
        was_ready=True,
        unfinished=[],
        unstarted=[],
        reason="",
        stderr_tail="",
    )
    return msgspec.structs.replace(report, **changes)


def test_ids_tell_the_generation() -> None:
    for number in range(200):
        first, task = new_ids(f"call {number}", is_v2=False)
        assert re.fullmatch(r"sb-[0-9A-Za-z]{22}", first)
        assert re.fullmatch(r"ta-[0-9A-Z]{25}[0-9A-UW-Z]", task)
        second, task = new_ids(f"call {number}", is_v2=True)
        assert re.fullmatch(r"sb-[0-7][0-9A-HJKMNP-TV-Z]{25}", second)
        assert re.fullmatch(r"ta-[0-9A-Z]{25}V", task)


def test_a_repeated_call_has_the_same_ids_and_others_have_their_own() -> None:
    assert new_ids("a call", is_v2=True) == new_ids("a call", is_v2=True)
    assert new_ids("", is_v2=True) != new_ids("", is_v2=True)


@pytest.mark.parametrize(
    ("report", "terminated", "status", "exitcode"),
    [
        (exited(0), False, STATUS_SUCCESS, 0),
        (exited(7), False, STATUS_FAILURE, 7),
        (exited(-15), False, STATUS_FAILURE, 143),
        (exited(-9), True, STATUS_TERMINATED, 137),
        (exited(0), True, STATUS_TERMINATED, 137),
        (exited(-9, cut_short="timeout"), False, STATUS_TIMEOUT, 124),
        (exited(-9, cut_short="idle"), False, STATUS_IDLE_TIMEOUT, 137),
        (exited(-9, oom_killed=True), False, STATUS_OUT_OF_MEMORY, 137),
        (exited(-1, start_failed=True, reason="no"), False, STATUS_INIT_FAILURE, 1),
        (exited(-9, reason="the node is stopping"), False, STATUS_INTERNAL_FAILURE, 137),
    ],
)
def test_results(report: TaskExited, terminated: bool, status: int, exitcode: int) -> None:
    result = result_of(report, terminated=terminated, spec=SPEC)
    assert (result.status, result.exitcode) == (status, exitcode)


def test_command_follows_the_entrypoint() -> None:
    config = ImageConfig(entrypoint=["/entry"], cmd=["default"])
    given = msgspec.structs.replace(SPEC, command=["given"])
    assert command_of(given, config) == ["/entry", "given"]
    assert command_of(SPEC, config) == ["/entry", "default"]
    assert command_of(SPEC, ImageConfig()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"image_id": ""},
        {"command": ["x" * 70_000]},
        {"command": ["a\0b"]},
        {"workdir": "relative"},
        {"timeout_s": 0.0},
        {"timeout_s": 100_000.0},
        {"ports": [Port(80)], "block_network": True},
        {"ports": [Port(70_000)]},
        {"memory_mb": 64, "memory_mb_max": 32},
        {"milli_cpu": 2000, "milli_cpu_max": 1000},
        {"probe": ProbeRef()},
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object]) -> None:
    check_spec(SPEC)
    with pytest.raises(InvalidError):
        check_spec(msgspec.structs.replace(SPEC, **changes))


def test_names() -> None:
    check_name("a-b_c.9")
    for name in ("", "with space", "x" * 65, "ä"):
        with pytest.raises(InvalidError):
            check_name(name)


def test_gvisor_has_no_gpus() -> None:
    gpu = msgspec.structs.replace(SPEC, gpu_type="T4", gpu_count=1)
    check_spec(gpu)
    with pytest.raises(UnimplementedError, match="GPUs"):
        check_spec(msgspec.structs.replace(gpu, runtime="runsc"))


def test_tags_have_names_and_a_size() -> None:
    check_tags({"a b": "", "ünï": "x\ny", "long": "x" * 60_000})
    for bad in ({"": "x"}, {"big": "ü" * 40_000}, {str(number): "" for number in range(257)}):
        with pytest.raises(InvalidError):
            check_tags(bad)
