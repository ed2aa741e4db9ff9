"""What is new is refused while disk or memory run short; what runs goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeport.kernel.errors import ExhaustedError
from homeport.rpc.admission import NEW, Admission
from homeport.rpc.context import ClientIdentity, TaskIdentity
from homeport.rpc.methods import client_services, methods_of

CLIENT = ClientIdentity("ak-1")
CONTAINER = TaskIdentity("ta-1", "ap-1", "main")
ALL_OF_IT = 2**40


class _Clock:
    time = 0.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time


def admission(folder: Path, clock: _Clock, *, disk_mb: int = 0, memory_mb: int = 0) -> Admission:
    return Admission(
        folder,
        clock,
        disk_reserve_mb=disk_mb,
        memory_reserve_mb=memory_mb,
        meminfo=folder / "meminfo",
    )


def test_the_names_are_rpcs_of_the_protocol() -> None:
    assert set(methods_of(client_services())) >= NEW


@pytest.mark.parametrize("what", ["disk", "memory"])
def test_new_work_is_refused_with_the_setting_to_change(tmp_path: Path, what: str) -> None:
    (tmp_path / "meminfo").write_text("MemFree: 1 kB\nMemAvailable:  51200 kB\n")
    short = admission(tmp_path, _Clock(), **{f"{what}_mb": ALL_OF_IT})
    for method in ("FunctionMap", "BlobCreate"):
        with pytest.raises(ExhaustedError, match=rf"short of {what}.*{what}_reserve_mb"):
            short.check(method, CLIENT)
    with pytest.raises(ExhaustedError):
        short.check("FunctionMap", CONTAINER)


def test_what_runs_goes_on(tmp_path: Path) -> None:
    short = admission(tmp_path, _Clock(), disk_mb=ALL_OF_IT)
    for method in ("FunctionGetOutputs", "FunctionCallCancel", "QueueGet", "AppStop"):
        short.check(method, CLIENT)
    short.check("BlobCreate", CONTAINER)


def test_it_recovers_by_itself(tmp_path: Path) -> None:
    clock = _Clock()
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable: 51200 kB\n")
    short = admission(tmp_path, clock, memory_mb=100)
    with pytest.raises(ExhaustedError, match="50 MiB are left"):
        short.check("FunctionMap", CLIENT)
    meminfo.write_text("MemAvailable: 512000 kB\n")
    clock.time += 1
    short.check("FunctionMap", CLIENT)


def test_without_reserves_nothing_is_refused(tmp_path: Path) -> None:
    admission(tmp_path, _Clock()).check("FunctionMap", CLIENT)
