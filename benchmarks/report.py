"""The results of the benchmarks as a page: docs/benchmarks.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"

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
OUTPUT_MS = 60.0
OVER_GVISOR_MS = 30
EXEC_MS = 8.0
LIVE = 500
CREATES = 5000


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


def write_page() -> None:
    """The page anew, of all that was measured."""
    parts = {
        part: json.loads((HERE / f"{part}.json").read_text())
        for part in ("sandboxes", "storage", "durability")
        if (HERE / f"{part}.json").exists()
    }
    PAGE.write_text(render(json.loads((HERE / "results.json").read_text()), **parts))


def render(
    results: dict[str, Any],
    sandboxes: dict[str, Any] | None = None,
    storage: dict[str, Any] | None = None,
    durability: dict[str, Any] | None = None,
) -> str:
    """The whole page; the other parts if they were measured."""
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
        *(_durability(durability) if durability else ()),
        *(_sandboxes(sandboxes) if sandboxes else ()),
        *(_storage(storage) if storage else ()),
    ]
    return "\n".join(lines)


_JOURNALS = {
    "none": "no journal: a crash loses what runs",
    "process": '`durability = "process"` (the default): survives the death of any process',
    "power": '`durability = "power"`: survives power loss as well',
}
JOURNALLED = 0.85


def _durability(results: dict[str, Any]) -> list[str]:
    machine, runs = results["machine"], len(results["map_per_s"]["none"])
    lines = [
        "## What it costs that nothing is lost",
        "",
        "Made by `benchmarks/durability.py`; as data in "
        "[durability.json](../benchmarks/durability.json). One server without a journal of calls "
        "and one of each durability, in turns.",
        "",
        f"| `.map` of {results['inputs']:,} inputs | inputs a second, median | of those without a "
        f"journal | bar: ≥ {JOURNALLED:.0%} |",
        "| --- | --- | --- | --- |",
    ]
    for mode, what in _JOURNALS.items():
        rate, share = statistics.median(results["map_per_s"][mode]), results["of_no_journal"][mode]
        verdict = "" if mode == "none" else "reached" if share >= JOURNALLED else "missed"
        lines.append(f"| {what} | {rate:,.0f} | {share:.0%} | {verdict} |")
    return [
        *lines,
        "",
        f"{results['date']}, {machine['cores']} cores ({machine['cpu']}), client "
        f"{machine['client']}; load of the machine before the start: {machine['load_before']:.1f}. "
        f"Medians of {runs} runs.",
        "",
    ]


_STORAGE = {
    "operations": ("Dicts and Queues", "storage_ops.py"),
    "volumes": ("Volumes", "volume_ops.py"),
}
TIMES_AS_LONG = 1.5


def _storage(parts: dict[str, Any]) -> list[str]:
    lines = [
        "## Storage",
        "",
        "As data in [storage.json](../benchmarks/storage.json). The floor is a server that keeps "
        "everything in memory, checks nothing and answers at once, measured in turns with Homeport "
        f"by the same client. The bar: at most {TIMES_AS_LONG:g} times as long.",
    ]
    for part, results in parts.items():
        title, program = _STORAGE[part]
        machine = results["machine"]
        lines += ["", f"{title} (`benchmarks/{program}`):", ""]
        lines += [
            "| a second | floor | Homeport | times as long | |",
            "| --- | --- | --- | --- | --- |",
        ]
        for what, found in results["figures"].items():
            ratio = found["times_as_long"]
            verdict = "reached" if ratio <= TIMES_AS_LONG else "missed"
            rates = f"{found['floor']:,.0f} | {found['homeport']:,.0f}"
            lines.append(f"| {what} | {rates} | {ratio:.2f} | {verdict} |")
        lines += [
            "",
            f"{results['date']}, {machine['cores']} cores ({machine['cpu']}), client "
            f"{machine['client']}; load of the machine at the end: {machine['load_before']:.1f}. "
            f"The best of {results['runs']} runs.",
        ]
        if since := results.get("since"):
            lines += ["", since]
    return [*lines, ""]


def sandbox_bars(figures: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, bar, found, reached) of one runtime."""
    first = figures["first_p50_ms"]
    added = figures["exec_p50_ms"] - figures["floor"]["exec_p50_ms"]
    most, exec_most = OUTPUT_MS, EXEC_MS
    what = "from create to the first output of a program, p50"
    if "alone_ms" in figures:
        most = figures["alone_ms"] + OVER_GVISOR_MS
        exec_most = OVER_GVISOR_MS  # what gVisor itself needs for it is not even added
        what += f" (gVisor alone: {figures['alone_ms']:.0f} ms)"
    rows = [
        (what, f"≤ {most:.0f} ms", f"{first:.1f} ms", first <= most),
        ("a program in it (start, output, end) takes longer than the floor's by",
         f"≤ {exec_most:g} ms", f"{added:.1f} ms", added <= exec_most),
    ]  # fmt: skip
    if "many" in figures:
        live = figures["many"]["live"]
        rows.append(("live at once", f"≥ {LIVE}", f"{live:,}", live >= LIVE))
    if "thousands" in figures:
        rounds = figures["thousands"]["rounds"]
        what = "created, used and ended without a failure"
        rows.append((what, f"{CREATES:,}", f"{rounds:,}", rounds >= CREATES))
    return rows


def _sandboxes(results: dict[str, Any]) -> list[str]:
    machine, settings = results["machine"], results["settings"]
    lines = [
        "## Sandboxes",
        "",
        "Made by `benchmarks/sandboxes.py`; as data in "
        "[sandboxes.json](../benchmarks/sandboxes.json). The floor is a server that answers at "
        "once and runs nothing, measured in turns with Homeport by the same client.",
        "",
        "| runtime | | bar | found | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for runtime, figures in results["runtimes"].items():
        lines += [
            f"| {runtime} | {what} | {bar} | {found} | {'reached' if reached else 'missed'} |"
            for what, bar, found, reached in sandbox_bars(figures)
        ]
    names = list(results["runtimes"])
    lines += ["", f"| | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for what, cell in _SANDBOX_ROWS:
        cells = [cell(figures) for figures in results["runtimes"].values()]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {what.format(**results, **settings)} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        f"{results['date']}, {machine['cores']} cores ({machine['cpu']}), "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, client {machine['client']}; load "
        f"of the machine before the start: {machine['load_before']:.1f}. Medians of "
        f"{settings['runs']} runs. Memory of a sandbox is what the machine had less of, without "
        "the client's own; its program is `sleep`.",
        *_root_files(results.get("root_files")),
        *([results["note"]] if "note" in results else ()),
        "",
    ]


def _root_files(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    return [
        f"Of a start the root file system takes {found['waited']:.1f} ms where one waited for it, "
        f"and {found['made']:.1f} ms where it is made then, with {found['layers']} layers "
        "(`benchmarks/root_files.py`)."
    ]


def _pair(name: str) -> Callable[[dict[str, Any]], str]:
    def cell(figures: dict[str, Any]) -> str:
        if f"{name}_p50_ms" not in figures:
            return "–"
        return f"{figures[f'{name}_p50_ms']:.1f} / {figures[f'{name}_p99_ms']:.1f} ms"

    return cell


def _of(part: str, name: str, text: str) -> Callable[[dict[str, Any]], str]:
    """``text`` with a figure of a part, or of the whole without one."""

    def cell(figures: dict[str, Any]) -> str:
        found = figures.get(part, {}) if part else figures
        return text.format(found[name]) if name in found else "–"

    return cell


def _memory(figures: dict[str, Any]) -> str:
    many = figures.get("many")
    if many is None:
        return "–"
    kernel = sum(many[f"{name}_kib"] for name in ("Slab", "KernelStack", "PageTables", "Percpu"))
    return (
        f"{many['memory_mib']:.1f} MiB (kernel {kernel / 1024:.1f}, processes' own "
        f"{many['AnonPages_kib'] / 1024:.1f}, of these node {many['node_kib'] / 1024:.2f} and "
        f"server {many['server_kib'] / 1024:.2f})"
    )


_SANDBOX_ROWS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    (
        "create → first output, one after the other, p50 / p99",
        _pair("first"),
    ),
    (
        "the same, where no container waits (setting `sandboxes_prepared_max` 0)",
        _pair("unprepared"),
    ),
    (
        "the same, the first one of a node that has just been started, p50 / most of {cold}",
        _pair("cold"),
    ),
    ("the same, {burst} at once (more than are prepared)", _pair("burst")),
    ("a program in a sandbox: start, output, end, p50 / p99", _pair("exec")),
    ("{numpy} at once that each import numpy: all done after", _of("", "numpy_all_s", "{:.1f} s")),
    ("created, used and ended a second, {at_once} at a time", _of("thousands", "per_s", "{:.1f}")),
    ("memory of an idle one, {live} alive", _memory),
]


def _row(name: str, figures: dict[str, float]) -> str:
    p50, p99 = figures["remote_p50_ms"], figures["remote_p99_ms"]
    rates = f"{figures['remote_per_s']:,.0f}/s | {figures['map_per_s']:,.0f}/s"
    return f"| {name} | {p50:.2f} / {p99:.2f} ms | {rates} |"
