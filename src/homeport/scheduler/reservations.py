"""What containers take of each node."""

from __future__ import annotations

from collections import Counter

from homeport.kernel.resources import Resources
from homeport.nodes.service import NodeService
from homeport.scheduler.placement import Defaults, NodeView
from homeport.settings import Settings


class Reservations:
    """Counts what functions' containers and sandboxes were given of the connected nodes."""

    def __init__(self, settings: Settings, nodes: NodeService) -> None:
        self._settings = settings
        self._nodes = nodes
        self._reserved: dict[str, Resources] = {}
        self._placed = Counter[str]()
        self.defaults = Defaults(
            settings.default_milli_cpu, settings.default_memory_mb, settings.containers_max
        )

    def views(self) -> list[NodeView]:
        """The connected nodes with what is left of them."""
        views: list[NodeView] = []
        for node_id, session in self._nodes.nodes().items():
            reserved = self._reserved.get(node_id, Resources())
            views.append(
                NodeView(
                    node_id=node_id,
                    capacity=session.capacity,
                    free=session.capacity - reserved,
                    gpu_type=session.gpu_type,
                    tasks=self._placed[node_id],
                )
            )
        return views

    def whole(self, node_id: str) -> NodeView:
        """A connected node as if nothing ran there."""
        session = self._nodes.nodes()[node_id]
        return NodeView(node_id, session.capacity, session.capacity, session.gpu_type, 0)

    def take(self, node_id: str, amount: Resources) -> None:
        """A container more."""
        self._reserved[node_id] = self._reserved.get(node_id, Resources()) + amount
        self._placed[node_id] += 1

    def give_back(self, node_id: str, amount: Resources) -> None:
        """A container less."""
        self._reserved[node_id] = self._reserved.get(node_id, Resources()) - amount
        self._placed[node_id] -= 1

    def memory_limit_mb(self, node_id: str, asked_mb: int, asked_max_mb: int) -> int:
        """The hard limit: the asked one, else what is asked for or the default, if larger."""
        if asked_max_mb:
            return asked_max_mb
        capacity = self._nodes.nodes()[node_id].capacity.memory_mb
        return max(asked_mb, self._settings.default_memory_limit_mb or capacity // 2)
