"""Room for sandboxes, beside the functions' containers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from homeport.kernel.errors import InvalidError
from homeport.kernel.resources import Resources
from homeport.sandboxes.model import GVISOR, GVISOR_MB, SandboxSpec
from homeport.scheduler.placement import (
    NodeView,
    Spot,
    Want,
    check_gpus,
    clamp,
    fewest,
    place_demand,
)
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
        room_wanted: Callable[[Want], None],
        work_finished: Callable[[str], None],
    ) -> None:
        self._reservations = reservations
        self._room_made = room_made
        self._room_wanted = room_wanted
        self._work_finished = work_finished
        self._places: dict[str, Spot] = {}

    def check(self, spec: SandboxSpec) -> None:
        nodes = self._reservations.views()
        check_gpus("The sandbox", spec.gpus, nodes)
        if nodes and not self._fit(spec, nodes):
            wanted = (
                "Memory snapshots of sandboxes (_experimental_enable_snapshot) need gVisor"
                if spec.memory_snapshots
                else 'runtime="gvisor" needs gVisor'
            )
            raise InvalidError(
                f"{wanted}, which no machine here has: install runsc, with the setting "
                "sandbox_runtime at auto or runsc; homeport doctor says what is in the way"
            )

    def reserve(self, task_id: str, spec: SandboxSpec) -> Spot | None:
        reservations = self._reservations
        nodes = [self._without_own(spec, each) for each in self._fit(spec, reservations.views())]
        spot = place_demand(self._demand(spec), spec.gpus, nodes, reservations.defaults)
        if spot is not None:
            spot = spot._replace(amount=spot.amount + self._own(spec, spot.node_id))
            self._take(task_id, spot)
        return spot

    def _own(self, spec: SandboxSpec, node_id: str) -> Resources:
        """What its runtime takes there, beside what it was asked for with."""
        if spec.gpu_count or GVISOR not in self._reservations.runtimes(node_id):
            return Resources()
        return Resources(memory_mb=GVISOR_MB)

    def _without_own(self, spec: SandboxSpec, node: NodeView) -> NodeView:
        own = self._own(spec, node.node_id)
        return replace(node, capacity=node.capacity - own, free=node.free - own)

    def _fit(self, spec: SandboxSpec, nodes: Sequence[NodeView]) -> list[NodeView]:
        """Those that have what it takes to run such a sandbox at all."""
        if not spec.needs_gvisor:
            return list(nodes)
        runtimes = self._reservations.runtimes
        return [node for node in nodes if GVISOR in runtimes(node.node_id)]

    def count(self, task_id: str, spec: SandboxSpec, node_id: str, gpus: Sequence[str]) -> Spot:
        known = self._places.get(task_id)
        if known is not None:
            return known
        demand = msgspec.structs.replace(self._demand(spec), gpus=len(gpus))
        node = self._without_own(spec, self._reservations.whole(node_id))
        amount = clamp(demand, node.capacity) + self._own(spec, node_id)
        spot = Spot(node_id, amount, tuple(gpus))
        self._take(task_id, spot)
        return spot

    def free(self, task_id: str) -> None:
        place = self._places.pop(task_id, None)
        if place is not None:
            self._reservations.give_back(place)
            self._room_made()

    def memory_limit_mb(self, spec: SandboxSpec, node_id: str) -> int:
        return self._reservations.memory_limit_mb(node_id, spec.memory_mb, spec.memory_mb_max)

    def is_oversized(self, spec: SandboxSpec) -> bool:
        nodes = self._reservations.views()
        demand = self._demand(spec)
        return bool(nodes) and all(clamp(demand, node.capacity) != demand for node in nodes)

    def want(self, spec: SandboxSpec) -> Want:
        """What such a sandbox needs."""
        return Want(self._demand(spec), spec.gpus)

    def wanted(self, spec: SandboxSpec) -> None:
        self._room_wanted(self.want(spec))

    def work_finished(self, app_id: str) -> None:
        self._work_finished(app_id)

    def _demand(self, spec: SandboxSpec) -> Resources:
        defaults = self._reservations.sandbox
        return Resources(
            milli_cpu=spec.milli_cpu or defaults.milli_cpu,
            memory_mb=spec.memory_mb or defaults.memory_mb,
            gpus=fewest(spec.gpus),
        )

    def _take(self, task_id: str, spot: Spot) -> None:
        self._places[task_id] = spot
        self._reservations.take(spot)
