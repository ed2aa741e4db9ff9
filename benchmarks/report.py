"""The results of ``calls.py`` as a page."""

from __future__ import annotations

from typing import Any

NAMES = {
    "floor": "floor (official client and entry point, server that answers at once)",
    "homeport": "**Homeport** (durable, isolated containers)",
    "pool": "process pool (`concurrent.futures`)",
    "celery": "Celery + Redis, nothing on disk",
    "celery-durable": "Celery + Redis, append-only file, fsync always",
    "dask": "Dask distributed",
    "ray": "Ray tasks",
}
ADDED_MS = 2.0
KEPT = 0.8
FIRST_S = 1.0


def bars(calls: dict[str, dict[str, float]]) -> list[tuple[str, str, str, bool]]:
    """(what, bar, found, reached) of the three targets."""
    ours, floor = calls["homeport"], calls["floor"]
    added = ours["remote_p50_ms"] - floor["remote_p50_ms"]
    kept = ours["map_per_s"] / floor["map_per_s"]
    rows = [
        ("a warm `.remote()` takes longer than the floor's by", f"≤ {ADDED_MS:g} ms",
         f"{added:.2f} ms", added <= ADDED_MS),
        ("`.map` keeps of the floor's rate", f"≥ {KEPT:.0%}", f"{kept:.0%}", kept >= KEPT),
    ]  # fmt: skip
    if "first_call_s" in ours:
        first = ours["first_call_s"]
        what = "first call on an idle server, image in the cache"
        rows.append((what, f"< {FIRST_S:g} s", f"{first:.2f} s", first < FIRST_S))
    return rows


def render(results: dict[str, Any]) -> str:
    """The whole page."""
    calls, settings, machine = results["calls"], results["settings"], results["machine"]
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench` (`benchmarks/calls.py`); the same figures as data are in "
        "[results.json](../benchmarks/results.json).",
        "",
        "## What Homeport adds to its protocol's own cost",
        "",
        "The floor is the official client and plain processes of its container entry point, with "
        "an in-memory server that checks, stores and isolates nothing. Both sides are measured in "
        "turns by the same code.",
        "",
        "| | bar | found | |",
        "| --- | --- | --- | --- |",
        *(
            f"| {what} | {bar} | {found} | {'reached' if reached else 'missed'} |"
            for what, bar, found, reached in bars(calls)
        ),
        "",
        "## Beside other systems",
        "",
        f"No-op function, {results['containers']} workers each, unpinned.",
        "",
        "| system | one call, p50 / p99 | calls one by one | many at once |",
        "| --- | --- | --- | --- |",
        *(_row(NAMES[name], figures) for name, figures in calls.items()),
        "",
        *(f"Not measured: {NAMES[n]} — {why}." for n, why in results["not_measured"].items()),
        "",
        "## How it was measured",
        "",
        f"{results['date']}, {machine['cores']} cores ({machine['cpu']}), "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, Python {machine['python']}, "
        f"client {machine['client']}. Load of the machine before the start: "
        f"{machine['load_before']:.1f}. Client, server and workers share the cores; no process is "
        f"pinned to a core. Medians of {settings['runs']} runs; per run {settings['calls']} calls "
        f"one after the other, then {settings['inputs']:,} inputs at once (`.map` without order, "
        "`submit` of each, a list of tasks). A first call is made when no container of its "
        "function runs; it includes starting one.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, figures: dict[str, float]) -> str:
    p50, p99 = figures["remote_p50_ms"], figures["remote_p99_ms"]
    rates = f"{figures['remote_per_s']:,.0f}/s | {figures['map_per_s']:,.0f}/s"
    return f"| {name} | {p50:.2f} / {p99:.2f} ms | {rates} |"
