"""What containers take of each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from homeport.kernel.gpus import Gpu
from homeport.kernel.resources import Resources
from homeport.nodes.service import NodeService
from homeport.scheduler.placement import Defaults, NodeView, Spot
from homeport.settings import Settings

_ANY: Final = 1 << 62


class Reservations:
    """Counts what functions' containers and sandboxes were given of the connected nodes."""

    def __init__(self, settings: Settings, nodes: NodeService) -> None:
        self._settings = settings
        self._nodes = nodes
        self._reserved: dict[str, Resources] = {}
        self._placed = Counter[str]()
        self._gpus: dict[str, Counter[str]] = {}
        """GPUs in use, by node."""
        self._known: tuple[tuple[str, object], ...] = ()
        self._views: dict[str, NodeView] = {}
        self._capacity = Resources()
        self._room: Resources | None = None
        self.defaults = Defaults(
            settings.default_milli_cpu, settings.default_memory_mb, settings.containers_max
        )
        self.sandbox = Resources(settings.sandbox_milli_cpu, settings.sandbox_memory_mb)
        """What a sandbox that asks for nothing is counted with."""

    def views(self) -> Sequence[NodeView]:
        """The connected nodes with what is left of them."""
        self._follow_nodes()
        return list(self._views.values())

    def runtimes(self, node_id: str) -> Sequence[str]:
        """With what a connected node isolates containers."""
        return self._nodes.nodes()[node_id].runtimes

    def _follow_nodes(self) -> None:
        """Take over who has come and gone since the last look."""
        sessions = self._nodes.nodes()
        known = (*sessions.items(),)
        if known == self._known:
            return
        self._known = known
        self._views = {}
        self._capacity = Resources()
        for node_id, session in sessions.items():
            self._capacity += session.capacity
            self._views[node_id] = NodeView(
                node_id=node_id,
                capacity=session.capacity,
                free=session.capacity - self._reserved.get(node_id, Resources()),
                tasks=self._placed[node_id],
                gpus=session.gpus,
                free_gpus=self._free_gpus(node_id, session.gpus),
            )
        self._room = None

    def capacity(self) -> Resources:
        """What all connected nodes together have."""
        self._follow_nodes()
        return self._capacity

    def room(self) -> Resources:
        """The most there is left of each resource on one node (not on the same one, perhaps).

        CPU and memory of a node where nothing runs are room for any demand, as demands are cut
        down to the size of the machine.
        """
        self._follow_nodes()
        if self._room is None:
            cpu = memory = gpus = 0
            for node in self._views.values():
                if node.tasks < self.defaults.containers_max:
                    free, whole = node.free, node.capacity
                    cpu = max(cpu, _ANY if free.milli_cpu >= whole.milli_cpu else free.milli_cpu)
                    memory = max(
                        memory, _ANY if free.memory_mb >= whole.memory_mb else free.memory_mb
                    )
                    gpus = max(gpus, free.gpus)
            self._room = Resources(cpu, memory, gpus)
        return self._room

    def whole(self, node_id: str) -> NodeView:
        """A connected node as if nothing ran there."""
        session = self._nodes.nodes()[node_id]
        gpus = session.gpus
        return NodeView(node_id, session.capacity, session.capacity, 0, gpus, gpus)

    def take(self, spot: Spot) -> None:
        """A container more."""
        node_id, amount, gpus = spot
        if gpus:
            self._gpus.setdefault(node_id, Counter()).update(gpus)
        self._change(node_id, self._reserved.get(node_id, Resources()) + amount, 1)

    def give_back(self, spot: Spot) -> None:
        """A container less."""
        node_id, amount, gpus = spot
        if gpus:
            self._gpus[node_id].subtract(gpus)
        self._change(node_id, self._reserved.get(node_id, Resources()) - amount, -1)

    def _free_gpus(self, node_id: str, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
        used = self._gpus.get(node_id)
        return tuple(gpu for gpu in gpus if used[gpu.uuid] <= 0) if used else gpus

    def _change(self, node_id: str, reserved: Resources, tasks: int) -> None:
        self._reserved[node_id] = reserved
        self._placed[node_id] += tasks
        view = self._views.get(node_id)
        if view is not None:
            free = view.capacity - reserved
            self._views[node_id] = replace(
                view,
                free=free,
                tasks=self._placed[node_id],
                free_gpus=self._free_gpus(node_id, view.gpus),
            )
            self._room = None

    def memory_limit_mb(self, node_id: str, asked_mb: int, asked_max_mb: int) -> int:
        """The hard limit: the asked one, else what is asked for or the default, if larger."""
        if asked_max_mb:
            return asked_max_mb
        capacity = self._nodes.nodes()[node_id].capacity.memory_mb
        return max(asked_mb, self._settings.default_memory_limit_mb or capacity // 2)
