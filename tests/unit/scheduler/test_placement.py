"""Where a container goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.functions.model import Autoscaler, FunctionSpec
from homeport.kernel.errors import InvalidError
from homeport.kernel.gpus import Gpu, GpuWish, choose
from homeport.kernel.resources import Resources
from homeport.scheduler.placement import (
    Defaults,
    NodeView,
    check_placeable,
    lacks_only_gpus,
    place,
    place_demand,
    place_many,
    taken,
)

DEFAULTS = Defaults(milli_cpu=125, memory_mb=128, containers_max=100)
SPEC = FunctionSpec(
    function_id="fu-1",
    app_id="ap-1",
    tag="f",
    client_version="1.6.4",
    image_id="im-1",
    mount_ids=[],
    secret_ids=[],
    milli_cpu=0,
    milli_cpu_max=0,
    memory_mb=0,
    memory_mb_max=0,
    gpu_type="",
    gpu_count=0,
    timeout_s=300.0,
    startup_timeout_s=300.0,
    retry_policy=None,
    autoscaler=Autoscaler(),
    max_concurrent=0,
    target_concurrent=0,
    batch_max_size=0,
    batch_linger_ms=0,
    single_use=False,
    is_class=False,
    is_server=False,
    is_generator=False,
    block_network=False,
    untrusted=False,
)


def node(name: str, cpu: int, memory: int, **changes: object) -> NodeView:
    values: dict[str, object] = {
        "node_id": name,
        "capacity": Resources(2000, 8192, 0),
        "free": Resources(cpu, memory, 0),
        "tasks": 0,
        **changes,
    }
    return NodeView(**values)  # type: ignore[arg-type]


def spec(**changes: object) -> FunctionSpec:
    return msgspec.structs.replace(SPEC, **changes)


def test_the_least_used_node_with_room_is_taken() -> None:
    spot = place(SPEC, [node("a", 500, 4096), node("b", 1500, 4096)], DEFAULTS)
    assert spot == ("b", Resources(125, 128, 0), ())


def test_a_full_node_takes_nothing() -> None:
    assert place(SPEC, [node("a", 100, 4096)], DEFAULTS) is None
    assert place(SPEC, [node("a", 2000, 100)], DEFAULTS) is None
    assert place(SPEC, [node("a", 2000, 8192, tasks=100)], DEFAULTS) is None


def test_a_program_for_bigger_machines_gets_the_whole_node() -> None:
    big = spec(milli_cpu=16_000, memory_mb=65_536)
    assert place(big, [node("a", 2000, 8192)], DEFAULTS) == ("a", Resources(2000, 8192, 0), ())
    assert place(big, [node("a", 1900, 8192)], DEFAULTS) is None
    assert len(check_placeable(big, [node("a", 2000, 8192)])) == 2


def card(kind: str, index: int = 0, memory_mb: int = 16_000, name: str = "") -> Gpu:
    return Gpu(f"GPU-{kind}-{index}", kind, name, memory_mb, index)


def gpu_node(name: str, *gpus: Gpu, used: Sequence[Gpu] = (), cpu: int = 2000) -> NodeView:
    free = tuple(gpu for gpu in gpus if gpu not in used)
    return node(
        name,
        cpu,
        8192,
        capacity=Resources(2000, 8192, len(gpus)),
        free=Resources(cpu, 8192, len(free)),
        gpus=gpus,
        free_gpus=free,
    )


def wants(first: GpuWish, *others: GpuWish) -> FunctionSpec:
    return spec(gpu_type=first.type, gpu_count=first.count, gpu_fallbacks=list(others))


T4, H100 = card("T4"), card("H100", memory_mb=80_000)


def test_a_gpu_that_no_node_has_is_refused_with_what_there_is() -> None:
    nodes = [node("a", 2000, 8192), gpu_node("g", T4, card("T4", 1), used=[T4])]
    wanted = r"Function 'f' asks for the GPU H100 or A100:2, .* \(GPUs here: 2 × T4\)"
    with pytest.raises(InvalidError, match=wanted):
        check_placeable(wants(GpuWish("H100"), GpuWish("A100", 2)), nodes)
    with pytest.raises(InvalidError, match="GPUs here: none"):
        check_placeable(wants(GpuWish("H100")), nodes[:1])
    with pytest.raises(InvalidError, match="T4:3"):
        check_placeable(wants(GpuWish("T4", 3)), nodes)
    check_placeable(wants(GpuWish("T4", 2)), nodes)  # they are in use, and will be free
    check_placeable(wants(GpuWish("H100"), GpuWish("T4")), nodes)


def test_gpus_are_matched_by_type_and_named() -> None:
    nodes = [node("a", 2000, 8192), gpu_node("g", H100, card("H100", 1))]
    assert place(wants(GpuWish("h100", 2)), nodes, DEFAULTS) == (
        "g",
        Resources(125, 128, 2),
        ("GPU-H100-0", "GPU-H100-1"),
    )
    assert place(wants(GpuWish("ANY")), nodes, DEFAULTS) is not None
    assert place(wants(GpuWish("T4")), nodes, DEFAULTS) is None


def test_the_first_gpu_of_a_list_that_is_free_anywhere_is_given() -> None:
    both = wants(GpuWish("H100"), GpuWish("T4"))
    nodes = [gpu_node("small", T4), gpu_node("large", H100, cpu=500)]
    spot = place(both, nodes, DEFAULTS)
    assert spot is not None
    assert spot.node_id == "large"
    nodes[1] = taken(nodes[1], spot)
    second = place(both, nodes, DEFAULTS)
    assert second is not None
    assert second.gpus == ("GPU-T4-0",)
    nodes[0] = taken(nodes[0], second)
    assert place(both, nodes, DEFAULTS) is None


def test_the_gpus_of_a_container_are_of_one_node() -> None:
    nodes = [gpu_node("a", T4), gpu_node("b", card("T4", 1))]
    assert place(wants(GpuWish("T4", 2)), nodes, DEFAULTS) is None


def test_only_what_holds_gpus_helps_who_lacks_only_those() -> None:
    busy = gpu_node("g", T4, used=[T4])
    demand, wishes = Resources(125, 128, 1), [GpuWish("T4")]
    assert lacks_only_gpus(demand, wishes, [busy], DEFAULTS)
    full = gpu_node("g", T4, used=[T4], cpu=100)
    assert not lacks_only_gpus(demand, wishes, [full], DEFAULTS)
    assert not lacks_only_gpus(Resources(125, 128), [], [busy], DEFAULTS)


@given(
    used=st.sets(st.integers(0, 5)),
    count=st.integers(0, 9),
    wishes=st.lists(
        st.builds(GpuWish, st.sampled_from(["T4", "H100", "ANY"]), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    ),
)
def test_no_gpu_is_given_twice(used: set[int], count: int, wishes: list[GpuWish]) -> None:
    cards = [card("T4", index) for index in range(4)] + [card("H100", 4), card("H100", 5)]
    nodes = [
        gpu_node("a", *cards[:3], used=[gpu for gpu in cards if gpu.index in used]),
        gpu_node("b", *cards[3:], used=[gpu for gpu in cards if gpu.index in used]),
    ]
    places = place_many(Resources(125, 128, 1), wishes, count, nodes, DEFAULTS)
    given = [uuid for spot in places for uuid in spot.gpus]
    assert len(given) == len(set(given))
    assert not {gpu.uuid for gpu in cards if gpu.index in used} & set(given)
    assert all(len(spot.gpus) == spot.amount.gpus for spot in places)
    if len(places) < count:  # then there is really none left
        left = {each.node_id: each for each in nodes}
        for spot in places:
            left[spot.node_id] = taken(left[spot.node_id], spot)
        for wish in wishes:
            assert not any(choose(wish, view.free_gpus) for view in left.values())


NODES = st.lists(
    st.builds(
        lambda cpu, memory, used, tasks: NodeView(
            "",
            Resources(cpu, memory, 0),
            Resources(cpu - cpu * used // 100, memory - memory * used // 100, 0),
            tasks,
        ),
        st.integers(100, 4000),
        st.integers(100, 4000),
        st.integers(0, 100),
        st.integers(90, 100),
    ),
    max_size=6,
)


@given(nodes=NODES, cpu=st.integers(1, 3000), memory=st.integers(1, 3000), count=st.integers(0, 12))
def test_many_at_once_are_placed_like_one_by_one(
    nodes: list[NodeView], cpu: int, memory: int, count: int
) -> None:
    nodes = [dataclasses.replace(node, node_id=f"no-{n}") for n, node in enumerate(nodes)]
    demand = Resources(cpu, memory, 0)
    at_once = place_many(demand, (), count, nodes, DEFAULTS)
    left = {node.node_id: node for node in nodes}
    for found in at_once:
        assert place_demand(demand, (), list(left.values()), DEFAULTS) == found
        node = left[found[0]]
        left[found[0]] = dataclasses.replace(node, free=node.free - found[1], tasks=node.tasks + 1)
    if len(at_once) < count:
        assert place_demand(demand, (), list(left.values()), DEFAULTS) is None
