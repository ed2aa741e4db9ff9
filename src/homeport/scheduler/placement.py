"""Which node a container goes to. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from homeport.functions.model import FunctionSpec
from homeport.kernel.errors import InvalidError
from homeport.kernel.gpus import Gpu, GpuWish, can_have, choose, listed, wished
from homeport.kernel.resources import Resources


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node with what is left of it."""

    node_id: str
    capacity: Resources
    free: Resources
    tasks: int
    gpus: tuple[Gpu, ...] = ()
    free_gpus: tuple[Gpu, ...] = ()


class Spot(NamedTuple):
    """A place for a container: where, what it takes there, and which of the GPUs."""

    node_id: str
    amount: Resources
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a function that asks for nothing is counted with."""

    milli_cpu: int
    memory_mb: int
    containers_max: int


class Want(NamedTuple):
    """What a container needs that found no place: room, and one of these numbers of GPUs."""

    demand: Resources
    wishes: Sequence[GpuWish]


def demand_of(spec: FunctionSpec, defaults: Defaults) -> Resources:
    """What a container of ``spec`` is counted with."""
    return Resources(
        milli_cpu=spec.milli_cpu or defaults.milli_cpu,
        memory_mb=spec.memory_mb or defaults.memory_mb,
        gpus=fewest(spec.gpus),
    )


def fewest(wishes: Sequence[GpuWish]) -> int:
    """The least number of GPUs that one of the wishes asks for."""
    return min((wish.count for wish in wishes), default=0)


def clamp(demand: Resources, capacity: Resources) -> Resources:
    """``demand``, with CPU and memory no larger than a whole node.

    A program written for bigger machines still runs here, alone on its node; GPUs are not
    make-believe and stay as asked.
    """
    return Resources(
        min(demand.milli_cpu, capacity.milli_cpu),
        min(demand.memory_mb, capacity.memory_mb),
        demand.gpus,
    )


def place(spec: FunctionSpec, nodes: Sequence[NodeView], defaults: Defaults) -> Spot | None:
    """The node with room that is least used, and what to reserve there."""
    return place_demand(demand_of(spec, defaults), spec.gpus, nodes, defaults)


def place_demand(
    demand: Resources, wishes: Sequence[GpuWish], nodes: Sequence[NodeView], defaults: Defaults
) -> Spot | None:
    """As ``place``, for what a container is counted with, and the GPUs it would do with.

    The wish that comes first is granted if any node can.
    """
    if not wishes:
        return _place_one(demand, None, nodes, defaults)
    for wish in wishes:
        spot = _place_one(demand, wish, nodes, defaults)
        if spot is not None:
            return spot
    return None


def _place_one(
    demand: Resources, wish: GpuWish | None, nodes: Sequence[NodeView], defaults: Defaults
) -> Spot | None:
    best: tuple[int, Spot] | None = None
    count = wish.count if wish is not None else 0
    for node in nodes:
        needed = msgspec.structs.replace(clamp(demand, node.capacity), gpus=count)
        if node.tasks >= defaults.containers_max or not needed.fits_in(node.free):
            continue
        chosen = choose(wish, node.free_gpus) if wish is not None else ()
        if chosen is None:
            continue
        score = node.free.milli_cpu - needed.milli_cpu
        if best is None or score > best[0]:
            best = (score, Spot(node.node_id, needed, tuple(gpu.uuid for gpu in chosen)))
    return None if best is None else best[1]


def taken(node: NodeView, spot: Spot) -> NodeView:
    """The node when a container has that place."""
    free_gpus = tuple(gpu for gpu in node.free_gpus if gpu.uuid not in spot.gpus)
    return replace(node, free=node.free - spot.amount, free_gpus=free_gpus, tasks=node.tasks + 1)


def place_many(
    demand: Resources,
    wishes: Sequence[GpuWish],
    count: int,
    nodes: Sequence[NodeView],
    defaults: Defaults,
) -> list[Spot]:
    """The places of up to ``count`` containers, as ``place_demand`` would give them one by one."""
    if wishes:
        return _place_many_on_gpus(demand, wishes, count, nodes, defaults)
    cpu, memory = demand.milli_cpu, demand.memory_mb
    heap: list[tuple[int, int]] = []  # (what is needed less what is free, number of the node)
    for index, node in enumerate(nodes):
        free, whole = node.free, node.capacity
        needed = min(cpu, whole.milli_cpu)
        if (
            needed <= free.milli_cpu
            and min(memory, whole.memory_mb) <= free.memory_mb
            and node.tasks < defaults.containers_max
        ):
            heap.append((needed - free.milli_cpu, index))
    heapq.heapify(heap)
    left: dict[int, tuple[Resources, int]] = {}
    places: list[Spot] = []
    while heap and len(places) < count:
        _, index = heapq.heappop(heap)
        node = nodes[index]
        needs = clamp(demand, node.capacity)
        free, tasks = left.get(index, (node.free, node.tasks))
        free, tasks = free - needs, tasks + 1
        left[index] = (free, tasks)
        places.append(Spot(node.node_id, needs))
        if tasks < defaults.containers_max and needs.fits_in(free):
            heapq.heappush(heap, (needs.milli_cpu - free.milli_cpu, index))
    return places


def _place_many_on_gpus(
    demand: Resources,
    wishes: Sequence[GpuWish],
    count: int,
    nodes: Sequence[NodeView],
    defaults: Defaults,
) -> list[Spot]:
    """There are few GPUs, so one by one is quick."""
    views = {node.node_id: node for node in nodes}
    places: list[Spot] = []
    while len(places) < count:
        spot = place_demand(demand, wishes, list(views.values()), defaults)
        if spot is None:
            break
        views[spot.node_id] = taken(views[spot.node_id], spot)
        places.append(spot)
    return places


def lacks_only_gpus(
    demand: Resources, wishes: Sequence[GpuWish], nodes: Sequence[NodeView], defaults: Defaults
) -> bool:
    """Whether a container that found no place would have one if GPUs were free."""
    free = [replace(node, free_gpus=node.gpus, free=_with_all_gpus(node)) for node in nodes]
    return bool(wishes) and place_demand(demand, wishes, free, defaults) is not None


def _with_all_gpus(node: NodeView) -> Resources:
    return msgspec.structs.replace(node.free, gpus=len(node.gpus))


def check_placeable(spec: FunctionSpec, nodes: Sequence[NodeView]) -> list[str]:
    """Sentences about what no node can give in full.

    Raises ``InvalidError`` for a GPU that no node has.
    """
    if not nodes:
        return []
    what = f"Function {spec.display_name!r}"
    check_gpus(what, spec.gpus, nodes)
    return _shortages(spec, nodes)


def check_gpus(what: str, wishes: Sequence[GpuWish], nodes: Sequence[NodeView]) -> None:
    """Raise ``InvalidError`` for GPUs that no node has, whoever uses them now."""
    if not wishes or not nodes or any(can_have(wishes, node.gpus) for node in nodes):
        return
    have = "; ".join(sorted(listed(node.gpus) for node in nodes if node.gpus)) or "none"
    raise InvalidError(
        f"{what} asks for the GPU {wished(wishes)}, and no node has that (GPUs here: {have}). "
        "Ask for one of these or remove gpu=; homeport doctor says why a GPU of the machine is "
        "not among them."
    )


def _shortages(spec: FunctionSpec, nodes: Sequence[NodeView]) -> list[str]:
    warnings: list[str] = []
    cpu_max = max(node.capacity.milli_cpu for node in nodes)
    memory_max = max(node.capacity.memory_mb for node in nodes)
    if spec.milli_cpu > cpu_max:
        warnings.append(
            f"Function {spec.display_name!r} asks for {spec.milli_cpu / 1000:g} cores; the "
            f"largest node has {cpu_max / 1000:g} and gives it all of them."
        )
    if spec.memory_mb > memory_max:
        warnings.append(
            f"Function {spec.display_name!r} asks for {spec.memory_mb} MiB of memory; the "
            f"largest node has {memory_max} MiB and gives it all of it."
        )
    return warnings
