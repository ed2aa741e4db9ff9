"""Where a container goes."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.functions.model import Autoscaler, FunctionSpec
from homeport.kernel.errors import InvalidError
from homeport.kernel.resources import Resources
from homeport.scheduler.placement import (
    Defaults,
    NodeView,
    check_placeable,
    place,
    place_demand,
    place_many,
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
        "gpu_type": "",
        "tasks": 0,
        **changes,
    }
    return NodeView(**values)  # type: ignore[arg-type]


def spec(**changes: object) -> FunctionSpec:
    return msgspec.structs.replace(SPEC, **changes)


def test_the_least_used_node_with_room_is_taken() -> None:
    spot = place(SPEC, [node("a", 500, 4096), node("b", 1500, 4096)], DEFAULTS)
    assert spot == ("b", Resources(125, 128, 0))


def test_a_full_node_takes_nothing() -> None:
    assert place(SPEC, [node("a", 100, 4096)], DEFAULTS) is None
    assert place(SPEC, [node("a", 2000, 100)], DEFAULTS) is None
    assert place(SPEC, [node("a", 2000, 8192, tasks=100)], DEFAULTS) is None


def test_a_program_for_bigger_machines_gets_the_whole_node() -> None:
    big = spec(milli_cpu=16_000, memory_mb=65_536)
    assert place(big, [node("a", 2000, 8192)], DEFAULTS) == ("a", Resources(2000, 8192, 0))
    assert place(big, [node("a", 1900, 8192)], DEFAULTS) is None
    assert len(check_placeable(big, [node("a", 2000, 8192)])) == 2


def test_a_gpu_that_no_node_has_is_refused_with_what_there_is() -> None:
    with pytest.raises(InvalidError, match="H100"):
        check_placeable(spec(gpu_type="H100", gpu_count=1), [node("a", 2000, 8192)])


def test_gpus_are_matched_by_type() -> None:
    gpu_node = node(
        "g",
        2000,
        8192,
        capacity=Resources(2000, 8192, 2),
        free=Resources(2000, 8192, 2),
        gpu_type="H100",
    )
    nodes = [node("a", 2000, 8192), gpu_node]
    assert place(spec(gpu_type="h100", gpu_count=2), nodes, DEFAULTS) == (
        "g",
        Resources(125, 128, 2),
    )
    assert place(spec(gpu_type="ANY", gpu_count=1), nodes, DEFAULTS) is not None
    assert place(spec(gpu_type="T4", gpu_count=1), nodes, DEFAULTS) is None


NODES = st.lists(
    st.builds(
        lambda cpu, memory, used, tasks: NodeView(
            "",
            Resources(cpu, memory, 0),
            Resources(cpu - cpu * used // 100, memory - memory * used // 100, 0),
            "",
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
    at_once = place_many(demand, "", count, nodes, DEFAULTS)
    left = {node.node_id: node for node in nodes}
    for found in at_once:
        assert place_demand(demand, "", list(left.values()), DEFAULTS) == found
        node = left[found[0]]
        left[found[0]] = dataclasses.replace(node, free=node.free - found[1], tasks=node.tasks + 1)
    if len(at_once) < count:
        assert place_demand(demand, "", list(left.values()), DEFAULTS) is None
