"""What the scheduler's decisions cost by the number of containers, and how good they are.

``python benchmarks/sim.py`` runs the scheduler of ``src/`` in virtual time (``tests/sim``) and writes
``docs/scheduling.md`` and ``docs/scheduling.svg``. Costs are of this machine; the rest is the same
everywhere.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.sim.loop import simulate  # noqa: E402
from tests.sim.traces import language_model, many_functions  # noqa: E402
from tests.sim.world import START_S, World  # noqa: E402

from homeport.functions.model import Autoscaler  # noqa: E402
from homeport.kernel.resources import Resources  # noqa: E402
from homeport.link.messages import STATUS_SUCCESS, OutputItem, Outputs, Result  # noqa: E402

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
PER_NODE = 100
REPEATS = 300
BAR_MS = 10.0
KINDS = {
    "input": "an input comes, a container is idle",
    "start": "an input comes, all are busy: containers are started",
    "output": "an input ends, the next is handed out, the number of containers is planned",
    "full": "an input comes, the machine is full: whose container makes way?",
    "exit": "a container ends, a hundred functions wait for room",
}
FOREVER = 1e9


async def _world(containers: int) -> World:
    """Half of the containers belong to one function, the others to a hundred; all are busy."""
    nodes = containers // PER_NODE
    # One node more than that has room for what is started while it is measured.
    capacity = Resources(milli_cpu=PER_NODE * 1000, memory_mb=1 << 24)
    world = World(nodes + max(1, 4 * REPEATS // PER_NODE + 1), capacity, start_s=0.0)
    names = ["big", *(f"f{n}" for n in range(100))]
    for name in names:
        number = containers // 2 if name == "big" else containers // 200
        world.function(name, autoscaler=Autoscaler(min_containers=number))
        pool = world.pool(name)
        pool.keep_min = True
        world.dispatch.step(pool)
        await asyncio.sleep(1)
        world.call(name, FOREVER, number)
        await asyncio.sleep(1)
        pool.keep_min = False
    assert len(world.nodes.containers) >= containers, len(world.nodes.containers)
    return world


def _timed(action: Callable[[], Any]) -> float:
    began = time.thread_time()  # what others do on the machine meanwhile is not its cost
    action()
    return (time.thread_time() - began) * 1000


async def _measure(containers: int) -> dict[str, list[float]]:
    world = await _world(containers)
    gc.collect()
    gc.freeze()
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(REPEATS):
        found["start"].append(_timed(lambda: world.call("big", 1.0)))
        await asyncio.sleep(0)
        await asyncio.sleep(2)  # it starts, runs, and is idle
        found["input"].append(_timed(lambda: world.call("big", FOREVER)))
        await asyncio.sleep(0.1)
    busy = [task for task in world.board.tasks.values() if task.pool.record.function_id == "big"]
    for task in busy[:REPEATS]:
        world.call("big", FOREVER)
        (input_id,) = task.held
        item = OutputItem(input_id, 0, Result(STATUS_SUCCESS), 1, 0.0, 0.0)
        message = Outputs(1, task.task_id, [item])
        world.nodes.containers[task.task_id].running.clear()

        def ended(message: Outputs = message) -> None:
            world.reports.said(message)
            world.dispatch.step(world.pool("big"))

        found["output"].append(_timed(ended))
        await asyncio.sleep(1)
    await _fill(world)
    for number in range(min(REPEATS, 100)):
        name = f"late{number}"
        world.function(name)
        found["full"].append(_timed(lambda name=name: world.call(name, FOREVER)))
    for task in busy[REPEATS : 2 * REPEATS]:
        container = world.nodes.containers.get(task.task_id)
        if container is not None:
            found["exit"].append(_timed(lambda gone=container: world.nodes._gone(gone)))
    gc.unfreeze()
    return found


async def _fill(world: World) -> None:
    """Let one more function take what is left of the machine."""
    world.function("filler", single_use=True)
    world.call("filler", FOREVER, 3_000)
    await asyncio.sleep(10)


async def _language_model() -> World:
    world = World(nodes=20)
    world.function("llm", max_concurrent=8, target_concurrent=6)
    await world.play(language_model("llm", seconds=3600, rate=10, seed=1))
    await world.all_done()
    await asyncio.sleep(120)
    return world


async def _many_functions() -> World:
    world = World(nodes=20)
    names = [f"f{n}" for n in range(500)]
    for name in names:
        world.function(name, milli_cpu=100, memory_mb=128)
    await world.play(many_functions(names, seconds=1800, rate=60, seed=1))
    await world.all_done()
    await asyncio.sleep(120)
    return world


async def _shared() -> list[int]:
    world = World(nodes=2, capacity=Resources(milli_cpu=20_000, memory_mb=1 << 20))
    for name in "abcd":
        world.function(name)
    world.call("a", 5.0, 6_000)
    await asyncio.sleep(60)
    for name in "bcd":
        world.call(name, 5.0, 6_000)
    await asyncio.sleep(400)
    return [world.containers_of(name) for name in "abcd"]


def _quality(world: World) -> dict[str, float]:
    waits = [wait for each in world.waits.values() for wait in each]
    parts = quantiles(waits, n=1000)
    return {
        "inputs": len(waits),
        "warm": sum(wait == 0 for wait in waits) / len(waits),
        "p95_s": parts[949],
        "p99_s": parts[989],
        "used": world.nodes.worked_s / world.nodes.paid_s,
    }


def _plot(costs: dict[str, dict[str, list[float]]]) -> str:
    """Medians by number of containers, both axes logarithmic, beside n log n."""
    width, height, left, bottom = 640, 400, 70, 50
    colours = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed")
    low, high = -2.5, 2.5  # of the logarithm of milliseconds

    def x(size: float) -> float:
        return left + (math.log10(size) - 3) / 2 * (width - left - 20)

    def y(ms: float) -> float:
        return height - bottom - (math.log10(ms) - low) / (high - low) * (height - bottom - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 110}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height + 110}" fill="white"/>',
    ]
    for power in range(-2, 3):
        at = y(10.0**power)
        parts.append(f'<path d="M{left} {at:.1f}H{width - 20}" stroke="#e5e7eb"/>')
        parts.append(
            f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g} ms</text>'
        )
    for size in SIZES:
        parts.append(f'<path d="M{x(size):.1f} 20V{height - bottom}" stroke="#e5e7eb"/>')
        parts.append(
            f'<text x="{x(size):.1f}" y="{height - bottom + 18}" text-anchor="middle">{size:,}</text>'
        )
    parts.append(f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">containers</text>')
    bar = y(BAR_MS)
    parts.append(
        f'<path d="M{left} {bar:.1f}H{width - 20}" stroke="#111827" stroke-dasharray="2 3"/>'
    )
    base = 0.02 / (1_000 * math.log(1_000))
    line = " ".join(f"{x(n):.1f},{y(base * n * math.log(n)):.1f}" for n in SIZES)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#6b7280" stroke-dasharray="6 4"/>')
    for number, (kind, words) in enumerate(KINDS.items()):
        line = " ".join(f"{x(n):.1f},{y(median(costs[str(n)][kind])):.1f}" for n in SIZES)
        colour = colours[number]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        at = height + 16 * number + 16
        parts.append(f'<path d="M{left} {at - 4}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 32}" y="{at}">{words}</text>')
    at = height + 16 * len(KINDS) + 16
    parts.append(f'<path d="M{left} {at - 4}h24" stroke="#6b7280" stroke-dasharray="6 4"/>')
    parts.append(
        f'<text x="{left + 32}" y="{at}">n log n (dotted: the bar of {BAR_MS:g} ms)</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _page(results: dict[str, Any]) -> str:
    costs, quality = results["costs"], results["quality"]
    rows = [
        f"| {words} | "
        + " | ".join(
            f"{median(costs[str(n)][kind]):.3f} / {quantiles(costs[str(n)][kind], n=100)[98]:.2f}"
            for n in SIZES
        )
        + " |"
        for kind, words in KINDS.items()
    ]
    worst = max(quantiles(costs[str(SIZES[-1])][kind], n=100)[98] for kind in KINDS)
    sizes = " | ".join(f"{n:,}" for n in SIZES)
    names = {"llm": "bursts for one language model", "many": "500 functions of all kinds"}
    shared = results["shared"]
    return "\n".join(
        [
            "# Scheduling, simulated",
            "",
            "Made by `benchmarks/sim.py`: the scheduler's own code with made-up nodes and callers, in "
            "virtual time (`tests/sim` checks the same in every test run).",
            "",
            "## What a decision costs",
            "",
            "Milliseconds of CPU time, median / 99th percentile, by the number of containers. Half of them belong "
            f"to one function, the others to a hundred; {PER_NODE} are on a node. "
            f"At {SIZES[-1]:,} containers the bar is {BAR_MS:g} ms: "
            f"{'reached' if worst <= BAR_MS else 'missed'} (worst 99th percentile: {worst:.2f} ms). "
            f"Machine: {results['machine']}.",
            "",
            f"| | {sizes} |",
            "|---" * (len(SIZES) + 1) + "|",
            *rows,
            "",
            "![cost of a decision by the number of containers](scheduling.svg)",
            "",
            "Containers are counted as they change, so a decision does not look at each of them. What "
            "grows is what looks at each node: where to place, and whether there is room.",
            "",
            "## How good they are",
            "",
            f"A container needs {START_S:g} s to start and outlasts its last input by a minute (the "
            "default). *Used* is the part of the containers' time, times their slots, in which "
            "inputs ran: the rest is start-up, slots beyond the target, and that minute.",
            "",
            "| traffic | inputs | at once | 95 % wait less than | 99 % | used |",
            "|---|---|---|---|---|---|",
            *(
                f"| {names[key]} | {found['inputs']:,} | {found['warm']:.1%} | {found['p95_s']:.2f} s | "
                f"{found['p99_s']:.2f} s | {found['used']:.0%} |"
                for key, found in quality.items()
            ),
            "",
            "Fairness: an app has filled a machine for 40 containers with a long queue; a minute later "
            "three others come with as much. After their inputs had the time to end, the four have "
            f"{', '.join(str(n) for n in shared)} containers.",
            "",
        ]
    )


def main() -> None:
    costs: dict[str, dict[str, list[float]]] = {}
    for size in SIZES:
        costs[str(size)] = simulate(_measure(size))
        shown = {kind: f"{median(each):.3f}" for kind, each in costs[str(size)].items()}
        print(size, shown, flush=True)
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "costs": costs,
        "quality": {
            "llm": _quality(simulate(_language_model())),
            "many": _quality(simulate(_many_functions())),
        },
        "shared": simulate(_shared()),
    }
    print(json.dumps({key: value for key, value in results.items() if key != "costs"}, indent=1))
    (ROOT / "docs" / "scheduling.md").write_text(_page(results))
    (ROOT / "docs" / "scheduling.svg").write_text(_plot(costs))


if __name__ == "__main__":
    main()
