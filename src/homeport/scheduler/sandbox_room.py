"""Room for sandboxes, beside the functions' containers."""

from __future__ import annotations

from collections.abc import Callable

from homeport.kernel.resources import Resources
from homeport.sandboxes.model import SandboxSpec
from homeport.scheduler.placement import check_gpu, clamp, place_demand
from homeport.scheduler.reservations import Reservations


class SandboxRoom:
    """Implements ``sandboxes.service.Room``.

    ``room_made`` is called when a sandbox is gone, ``room_wanted`` when one finds no room,
    ``work_finished`` when an app has none any more.
    """

    def __init__(
        self,
        reservations: Reservations,
        *,
        room_made: Callable[[], None],
        room_wanted: Callable[[], None],
        work_finished: Callable[[str], None],
    ) -> None:
        self._reservations = reservations
        self._room_made = room_made
        self._room_wanted = room_wanted
        self._work_finished = work_finished
        self._places: dict[str, tuple[str, Resources]] = {}

    def check(self, spec: SandboxSpec) -> None:
        check_gpu("The sandbox", spec.gpu_count, spec.gpu_type, self._reservations.views())

    def reserve(self, task_id: str, spec: SandboxSpec) -> tuple[str, Resources] | None:
        reservations = self._reservations
        nodes = reservations.views()
        spot = place_demand(self._demand(spec), spec.gpu_type, nodes, reservations.defaults)
        if spot is not None:
            self._take(task_id, *spot)
        return spot

    def count(self, task_id: str, spec: SandboxSpec, node_id: str) -> Resources:
        known = self._places.get(task_id)
        if known is not None:
            return known[1]
        amount = clamp(self._demand(spec), self._reservations.whole(node_id).capacity)
        self._take(task_id, node_id, amount)
        return amount

    def free(self, task_id: str) -> None:
        place = self._places.pop(task_id, None)
        if place is not None:
            self._reservations.give_back(*place)
            self._room_made()

    def memory_limit_mb(self, spec: SandboxSpec, node_id: str) -> int:
        return self._reservations.memory_limit_mb(node_id, spec.memory_mb, spec.memory_mb_max)

    def wanted(self) -> None:
        self._room_wanted()

    def work_finished(self, app_id: str) -> None:
        self._work_finished(app_id)

    def _demand(self, spec: SandboxSpec) -> Resources:
        defaults = self._reservations.sandbox
        return Resources(
            milli_cpu=spec.milli_cpu or defaults.milli_cpu,
            memory_mb=spec.memory_mb or defaults.memory_mb,
            gpus=spec.gpu_count,
        )

    def _take(self, task_id: str, node_id: str, amount: Resources) -> None:
        self._places[task_id] = (node_id, amount)
        self._reservations.take(node_id, amount)
