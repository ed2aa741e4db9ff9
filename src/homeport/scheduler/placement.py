"""Which node a container goes to. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from homeport.functions.model import FunctionSpec
from homeport.kernel.errors import InvalidError
from homeport.kernel.resources import Resources


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node with what is left of it."""

    node_id: str
    capacity: Resources
    free: Resources
    gpu_type: str
    tasks: int


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a function that asks for nothing is counted with."""

    milli_cpu: int
    memory_mb: int
    containers_max: int


def demand_of(spec: FunctionSpec, defaults: Defaults) -> Resources:
    """What a container of ``spec`` is counted with."""
    return Resources(
        milli_cpu=spec.milli_cpu or defaults.milli_cpu,
        memory_mb=spec.memory_mb or defaults.memory_mb,
        gpus=spec.gpu_count,
    )


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


def place(
    spec: FunctionSpec, nodes: Sequence[NodeView], defaults: Defaults
) -> tuple[str, Resources] | None:
    """The node with room that is least used, and what to reserve there."""
    return place_demand(demand_of(spec, defaults), spec.gpu_type, nodes, defaults)


def place_demand(
    demand: Resources, gpu_type: str, nodes: Sequence[NodeView], defaults: Defaults
) -> tuple[str, Resources] | None:
    """As ``place``, for what a container is counted with."""
    best: tuple[int, str, Resources] | None = None
    for node in nodes:
        if demand.gpus and not _has_gpu(demand.gpus, gpu_type, node):
            continue
        needed = clamp(demand, node.capacity)
        if node.tasks >= defaults.containers_max or not needed.fits_in(node.free):
            continue
        score = node.free.milli_cpu - needed.milli_cpu
        if best is None or score > best[0]:
            best = (score, node.node_id, needed)
    return None if best is None else (best[1], best[2])


def place_many(
    demand: Resources, gpu_type: str, count: int, nodes: Sequence[NodeView], defaults: Defaults
) -> list[tuple[str, Resources]]:
    """The places of up to ``count`` containers, as ``place_demand`` would give them one by one."""
    cpu, memory, gpus = demand.milli_cpu, demand.memory_mb, demand.gpus
    heap: list[tuple[int, int]] = []  # (what is needed less what is free, number of the node)
    for index, node in enumerate(nodes):
        free, whole = node.free, node.capacity
        needed = min(cpu, whole.milli_cpu)
        if (
            needed <= free.milli_cpu
            and min(memory, whole.memory_mb) <= free.memory_mb
            and node.tasks < defaults.containers_max
            and (not gpus or (gpus <= free.gpus and _has_gpu(gpus, gpu_type, node)))
        ):
            heap.append((needed - free.milli_cpu, index))
    heapq.heapify(heap)
    left: dict[int, tuple[Resources, int]] = {}
    places: list[tuple[str, Resources]] = []
    while heap and len(places) < count:
        _, index = heapq.heappop(heap)
        node = nodes[index]
        needs = clamp(demand, node.capacity)
        free, tasks = left.get(index, (node.free, node.tasks))
        free, tasks = free - needs, tasks + 1
        left[index] = (free, tasks)
        places.append((node.node_id, needs))
        if tasks < defaults.containers_max and needs.fits_in(free):
            heapq.heappush(heap, (needs.milli_cpu - free.milli_cpu, index))
    return places


def check_placeable(spec: FunctionSpec, nodes: Sequence[NodeView]) -> list[str]:
    """Sentences about what no node can give in full.

    Raises ``InvalidError`` for a GPU that no node has.
    """
    if not nodes:
        return []
    what = f"Function {spec.display_name!r}"
    check_gpu(what, spec.gpu_count, spec.gpu_type, nodes)
    return _shortages(spec, nodes)


def check_gpu(what: str, count: int, gpu_type: str, nodes: Sequence[NodeView]) -> None:
    """Raise ``InvalidError`` for GPUs that no node has."""
    if not count or not nodes or any(_has_gpu(count, gpu_type, node) for node in nodes):
        return
    have = ", ".join(sorted({node.gpu_type for node in nodes if node.gpu_type})) or "none"
    raise InvalidError(
        f"{what} asks for {count} GPU(s) of type {gpu_type!r}, and no node has that (GPUs here: "
        f"{have}). Remove gpu=, or add a machine that has one."
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


def _has_gpu(count: int, gpu_type: str, node: NodeView) -> bool:
    wanted = gpu_type.upper()
    return node.capacity.gpus >= count and (
        wanted in ("", "ANY") or wanted == node.gpu_type.upper()
    )
