"""The scheduler under traffic of many shapes, in virtual time; seeded."""

from __future__ import annotations

import asyncio
import random
from statistics import quantiles

import pytest
from tests.sim.loop import simulate
from tests.sim.traces import language_model, many_functions
from tests.sim.world import START_S, Arrival, World

from homeport.functions.model import Autoscaler
from homeport.kernel.resources import Resources


def percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100)[percent - 1]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_bursts_of_a_language_model(seed: int) -> None:
    async def scenario() -> World:
        world = World(nodes=20)
        world.function("llm", max_concurrent=8, target_concurrent=6)
        await world.play(language_model("llm", seconds=1800, rate=10, seed=seed))
        await world.all_done()
        await asyncio.sleep(120)
        assert not world.nodes.containers  # scaled to zero
        return world

    world = simulate(scenario())
    waits = world.waits["llm"]
    assert len(waits) > 5_000
    assert percentile(waits, 50) == 0
    assert percentile(waits, 95) < 2 * START_S
    assert max(waits) < 5 * START_S
    # The rest is the window of a minute that containers outlast a burst.
    assert world.nodes.worked_s / world.nodes.paid_s > 0.15


@pytest.mark.parametrize("seed", [1, 2])
def test_many_functions(seed: int) -> None:
    async def scenario() -> World:
        world = World(nodes=20)
        names = [f"f{n}" for n in range(300)]
        for name in names:
            world.function(name, milli_cpu=100, memory_mb=128)
        await world.play(many_functions(names, seconds=300, rate=60, seed=seed))
        await world.all_done()
        return world

    world = simulate(scenario())
    waits = [wait for each in world.waits.values() for wait in each]
    assert len(waits) > 15_000
    assert percentile(waits, 50) == 0
    assert percentile(waits, 99) < 3 * START_S
    # Rare functions pay their window of a minute: that is what a warm start costs.
    assert world.nodes.worked_s / world.nodes.paid_s > 0.15


@pytest.mark.parametrize("apps", [2, 4])
def test_a_full_machine_is_shared(apps: int) -> None:
    """Whoever came first has everything; the others get their part as its inputs end."""

    async def scenario() -> list[int]:
        world = World(nodes=2, capacity=Resources(milli_cpu=20_000, memory_mb=1 << 20))
        names = [f"app{n}" for n in range(apps)]
        for name in names:
            world.function(name)
        world.call(names[0], 5.0, 4_000)
        await asyncio.sleep(60)
        assert world.containers_of(names[0]) == 40
        for name in names[1:]:
            world.call(name, 5.0, 4_000)
        await asyncio.sleep(400)
        shares = [world.containers_of(name) for name in names]
        await world.all_done()
        return shares

    shares = simulate(scenario())
    assert sum(shares) == pytest.approx(40, abs=2)
    assert min(shares) >= 0.75 * 40 / apps


def test_a_small_one_is_served_on_a_full_machine() -> None:
    """A caller of one input does not wait behind a thousand of another app."""

    async def scenario() -> World:
        world = World(nodes=1, capacity=Resources(milli_cpu=10_000, memory_mb=1 << 20))
        world.function("big")
        world.function("small")
        world.call("big", 10.0, 2_000)
        await asyncio.sleep(100)
        for _ in range(5):
            world.call("small", 1.0)
            await asyncio.sleep(120)
        await world.all_done()
        return world

    world = simulate(scenario())
    assert max(world.waits["small"]) <= 10.0 + 3 * START_S


def test_minimum_containers_are_nobody_elses() -> None:
    async def scenario() -> int:
        world = World(nodes=1, capacity=Resources(milli_cpu=10_000, memory_mb=1 << 20))
        world.function("warm", autoscaler=Autoscaler(min_containers=3))
        pool = world.pool("warm")
        pool.keep_min = True
        world.dispatch.step(pool)
        await asyncio.sleep(10)
        world.function("big")
        world.call("big", 2.0, 200)
        await asyncio.sleep(30)
        kept = world.containers_of("warm")
        await world.all_done()
        return kept

    assert simulate(scenario()) == 3


@pytest.mark.parametrize("seed", range(4))
def test_nodes_that_die(seed: int) -> None:
    """Each input ends once, whatever is lost."""

    async def scenario() -> World:
        chance = random.Random(seed)
        world = World(nodes=8)
        world.function("f", max_concurrent=chance.choice([0, 4]))
        for _ in range(6):
            world.call("f", chance.uniform(0.01, 8), 150)
            await asyncio.sleep(chance.uniform(0, 6))
            world.nodes.die(chance.choice(sorted(world.nodes.nodes())))
        await world.all_done()
        return world

    assert len(simulate(scenario()).waits["f"]) == 900


@pytest.mark.parametrize("maximum", [None, 1, 6])
def test_rolling_deployments_under_load(maximum: int | None) -> None:
    """No input is lost, none waits for a start, and the maximum is kept."""

    async def scenario() -> World:
        world = World()
        settings = Autoscaler(max_containers=maximum)
        world.function("f", max_concurrent=2, autoscaler=settings)
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                pool = world.pool("f")
                most = max(most, pool.tally.ready + pool.tally.starting + len(pool.tally.outdated))
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        chance = random.Random(5)
        at, arrivals = 0.0, list[Arrival]()
        while at < 300:
            at += chance.expovariate(1.5 if maximum == 1 else 8)
            arrivals.append(Arrival(at, "f", 0.5))
        load = asyncio.create_task(world.play(arrivals))
        for _ in range(9):
            await asyncio.sleep(30)
            world.function("f", max_concurrent=2, autoscaler=settings)
        await load
        await world.all_done()
        watching.cancel()
        assert not world.pool("f").tally.outdated
        if maximum:
            assert most <= maximum
        return world

    waits = simulate(scenario()).waits["f"]
    if maximum is None:
        assert percentile(waits, 99) < START_S


def test_the_same_seed_gives_the_same() -> None:
    async def scenario() -> list[float]:
        world = World()
        world.function("llm", max_concurrent=4)
        await world.play(language_model("llm", seconds=200, rate=5, seed=9))
        await world.all_done()
        return world.waits["llm"]

    assert simulate(scenario()) == simulate(scenario())


@pytest.mark.parametrize("seed", range(6))
def test_connections_that_are_lost(seed: int) -> None:
    """Whatever was said meanwhile, inputs end, once, and so do containers."""

    async def scenario() -> World:
        chance = random.Random(seed)
        world = World(nodes=2)
        world.function(
            "f", max_concurrent=chance.choice([0, 4]), autoscaler=Autoscaler(max_containers=3)
        )
        for _ in range(12):
            world.call("f", chance.uniform(0.01, 2), 10)
            await asyncio.sleep(chance.uniform(0, 1.5))
            node_id = chance.choice(sorted(world.nodes.nodes()))
            world.nodes.cut(node_id)
            await asyncio.sleep(chance.uniform(0, 2))
            if chance.random() < 0.2:  # for so long that it counts as gone
                world.recovery.lost(node_id)
                await asyncio.sleep(chance.uniform(0, 2))
            world.nodes.connect(node_id)
        await world.all_done()
        for _ in range(10):  # while they are told to end
            away = sorted(world.nodes.nodes())
            for node_id in away:
                world.nodes.cut(node_id)
            await asyncio.sleep(chance.uniform(0, 20))
            for node_id in away:
                world.nodes.connect(node_id)
            await asyncio.sleep(chance.uniform(0, 5))
        await asyncio.sleep(300)
        assert not world.nodes.containers
        return world

    assert len(simulate(scenario()).waits["f"]) == 120
