from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from homeport.kernel.errors import InvalidError
from homeport.kernel.resources import Resources
from homeport.sandboxes.model import GVISOR_MB, SandboxSpec
from homeport.scheduler.reservations import Reservations
from homeport.scheduler.sandbox_room import SandboxRoom
from homeport.settings import Settings


class Nodes:
    """One connected node of two cores and 24 GiB."""

    def __init__(self, runtimes: Sequence[str]) -> None:
        self._session = SimpleNamespace(
            capacity=Resources(2000, 24_000), gpus=(), runtimes=runtimes
        )

    def nodes(self) -> dict[str, Any]:
        return {"no-1": self._session}


def room_of(settings: Settings, *runtimes: str) -> SandboxRoom:
    nodes: Any = Nodes(["bubblewrap", *runtimes])
    return SandboxRoom(
        Reservations(settings, nodes),
        room_made=lambda: None,
        room_wanted=lambda _: None,
        work_finished=lambda _: None,
    )


def placed(room: SandboxRoom, spec: SandboxSpec, at_most: int) -> int:
    for number in range(at_most):
        if room.reserve(f"ta-{number}", spec) is None:
            return number
    return at_most


def test_a_small_machine_has_room_for_thousands_that_ask_for_nothing() -> None:
    room = room_of(Settings(home=Path("/nowhere")))
    assert placed(room, SandboxSpec(image_id="im-1"), 5000) == 2000


def test_what_was_asked_for_is_what_counts() -> None:
    room = room_of(Settings(home=Path("/nowhere")))
    spec = SandboxSpec(image_id="im-1", milli_cpu=500, memory_mb=1000)
    assert placed(room, spec, 5000) == 4
    assert (
        placed(
            room_of(Settings(home=Path("/nowhere"))),
            SandboxSpec(image_id="im-1", memory_mb=12_000),
            9,
        )
        == 2
    )


def test_it_is_a_setting() -> None:
    settings = Settings(home=Path("/nowhere"), sandbox_milli_cpu=100, sandbox_memory_mb=2400)
    assert placed(room_of(settings), SandboxSpec(image_id="im-1"), 5000) == 10


def test_a_kernel_of_their_own_is_counted_too() -> None:
    settings = Settings(home=Path("/nowhere"))
    spec = SandboxSpec(image_id="im-1", memory_mb=1000)
    assert placed(room_of(settings), spec, 99) == 24
    assert placed(room_of(settings, "runsc"), spec, 99) == 23
    least = placed(room_of(settings, "runsc"), SandboxSpec(image_id="im-1"), 5000)
    assert least == 24_000 // (settings.sandbox_memory_mb + GVISOR_MB)


def test_one_that_wants_more_than_the_machine_still_runs_alone_there() -> None:
    spec = SandboxSpec(image_id="im-1", memory_mb=1_000_000)
    room = room_of(Settings(home=Path("/nowhere")), "runsc")
    assert placed(room, spec, 2) == 1
    room.free("ta-0")
    spot = room.count("ta-0", spec, "no-1", ())
    assert spot.amount.memory_mb == 24_000
    assert room.reserve("ta-1", spec) is None


def test_what_no_machine_has_is_said() -> None:
    room = room_of(Settings(home=Path("/nowhere")))
    with pytest.raises(InvalidError, match=r'^runtime="gvisor" needs gVisor'):
        room.check(SandboxSpec(image_id="im-1", runtime="runsc"))
    with pytest.raises(InvalidError, match=r"^Memory snapshots"):
        room.check(SandboxSpec(image_id="im-1", memory_snapshots=True))
    room.check(SandboxSpec(image_id="im-1"))


@pytest.mark.parametrize(
    ("spec", "is_oversized"),
    [
        (SandboxSpec(image_id="im-1", memory_mb=24_000), False),
        (SandboxSpec(image_id="im-1", memory_mb=24_001), True),
        (SandboxSpec(image_id="im-1", milli_cpu=2001), True),
        (SandboxSpec(image_id="im-1"), False),
    ],
)
def test_what_no_machine_has_in_full_is_known(spec: SandboxSpec, is_oversized: bool) -> None:
    assert room_of(Settings(home=Path("/nowhere"))).is_oversized(spec) is is_oversized
