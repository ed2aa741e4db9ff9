"""What a sandbox costs: the first output, a program, a burst, many at once, thousands in a row.

    python benchmarks/sandboxes.py                                   # bubblewrap, and runc if there
    python benchmarks/sandboxes.py --runtimes bubblewrap --live 2000 --creates 500 --no-write

Each runtime gets a server of its own; the floor (``floor_sandboxes.py``: a server that answers at
once and runs nothing) is measured in turns with it by the same client code. Results:
``benchmarks/sandboxes.json`` and ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calls import machine, python
from report import write_page
from root_files import root_files_ms

from homeport.node.leaks import find_leaks

HERE = Path(__file__).parent
RUNTIMES = ("bubblewrap", "runc", "runsc")
ALONE = 10
COLD = 20
PAUSE_S = 0.1
BURST = 32
AT_ONCE = 8
LAYERS = 10
"""Of an image as ``pip_install`` and some files make it."""
PARTS = 10
"""The thousands come in that many parts; after each it is looked at what is held."""
HOMEPORT = ("-m", "homeport.cli.main")
KERNEL = ("Slab", "KernelStack", "PageTables", "Percpu")
Figures = dict[str, Any]


@contextlib.contextmanager
def floor() -> Iterator[dict[str, str]]:
    """A floor server; yields the client's variables."""
    command = [sys.executable, HERE / "floor_sandboxes.py"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        url = process.stdout.readline().strip()
        assert url, "the floor server did not start"
        yield {
            "MODAL_SERVER_URL": url,
            "MODAL_TOKEN_ID": "floor",
            "MODAL_TOKEN_SECRET": "floor",
            "MODAL_CONFIG_PATH": "/nonexistent",
        }
    finally:
        process.stdin.close()
        process.wait(30)


class Homeport:
    """A server and a node of their own with one runtime."""

    def __init__(self, home: Path, runtime: str, **settings: object) -> None:
        self.home = home
        self.runtime = runtime
        self._settings = {f"HOMEPORT_{name.upper()}": value for name, value in settings.items()}
        self.environ: dict[str, str] = {}

    def __enter__(self) -> Homeport:
        name = "SANDBOX" if self.runtime == "runsc" else "DEFAULT"  # gVisor is for sandboxes
        more = {"HOMEPORT_SANDBOX_RUNTIME": "", f"HOMEPORT_{name}_RUNTIME": self.runtime}
        more.update({key: str(value) for key, value in self._settings.items()})
        python(*HOMEPORT, "up", "--detach", "--home", self.home, "--port", 0, environ=more)
        self.environ = json.loads(python(*HOMEPORT, "env", "--home", self.home, "--json"))
        self.environ["MODAL_CONFIG_PATH"] = str(self.home / "none.toml")
        return self

    def __exit__(self, *_: object) -> None:
        python(*HOMEPORT, "down", "--home", self.home)

    def pids(self) -> dict[str, int]:
        """Of the server and the node."""
        status = json.loads(python(*HOMEPORT, "status", "--home", self.home, "--json"))
        return {part: int(status[f"{part}_pid"]) for part in ("server", "node")}

    def state(self) -> Figures:
        """What its processes hold, and what there is on the machine of its containers."""
        found: Figures = {}
        for part, pid in self.pids().items():
            found[f"{part}_rss_mib"] = _rss_mib(pid)
            found[f"{part}_threads"] = len(os.listdir(f"/proc/{pid}/task"))
            found[f"{part}_descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
        leaks = find_leaks(self.home)
        for kind in ("container process", "mount", "control group", "nftables table"):
            found[kind.replace(" ", "_")] = sum(leak.startswith(kind) for leak in leaks)
        found["network_interface"] = sum(leak.startswith("network interface") for leak in leaks)
        return found


def client(environ: dict[str, str], *arguments: object) -> Figures:
    """One client process against a server; fails if anything failed in it."""
    figures = json.loads(python(HERE / "sandboxes_client.py", *arguments, environ=environ))
    if figures.pop("failures"):
        raise RuntimeError(f"{arguments[0]}: {figures}")
    return figures


def in_turns(
    ours: dict[str, str], least: dict[str, str], options: argparse.Namespace
) -> tuple[Figures, Figures]:
    """Medians of ours and of the floor for what is done one after the other."""
    runs: dict[str, list[Figures]] = {"ours": [], "floor": []}
    for _ in range(options.runs):
        for name, environ in (("floor", least), ("ours", ours)):
            found = client(environ, "exec", "--count", options.execs)
            pause = ("--pause", PAUSE_S)
            found.update(client(environ, "first", "--count", options.firsts, *pause))
            runs[name].append(found)
    return _medians(runs["ours"]), _medians(runs["floor"])


def many_live(homeport: Homeport, count: int) -> Figures:
    """That many sandboxes at once: how long they took, and where the memory went."""
    before, held = memory(), homeport.state()
    command = [sys.executable, HERE / "sandboxes_client.py", "live", "--count", str(count)]
    process = subprocess.Popen(
        [*map(str, command), "--at-once", str(AT_ONCE)],
        env={**os.environ, **homeport.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    line = process.stdout.readline()
    assert line, "no sandbox lived"
    client_mib = _rss_mib(process.pid)
    during, holding = memory(), homeport.state()
    process.stdin.close()
    figures = json.loads(process.stdout.read())
    process.wait(60)
    live = figures["live"]
    of_machine = before["MemAvailable"] - during["MemAvailable"]
    figures["memory_mib"] = (of_machine / 1024 - client_mib) / live
    for name in ("AnonPages", *KERNEL):
        figures[f"{name}_kib"] = (during[name] - before[name]) / live
    for part in ("server", "node"):
        grown = holding[f"{part}_rss_mib"] - held[f"{part}_rss_mib"]
        figures[f"{part}_kib"] = grown * 1024 / live
    figures["node_descriptors"] = holding["node_descriptors"]
    return figures


def thousands(homeport: Homeport, count: int) -> Figures:
    """Create, run, end, ``count`` times; what is held before and after."""
    client(homeport.environ, "churn", "--count", 100, "--at-once", AT_ONCE)
    states = [homeport.state()]
    rounds, seconds, failures = 0, 0.0, Counter[str]()
    for number in range(PARTS):
        part = count * (number + 1) // PARTS - count * number // PARTS
        arguments = ("churn", "--count", part, "--at-once", AT_ONCE)
        program = HERE / "sandboxes_client.py"
        found = json.loads(python(program, *arguments, environ=homeport.environ))
        rounds += found["rounds"]
        seconds += found["rounds"] / found["per_s"]
        failures.update(found["failures"])
        time.sleep(2)  # the last containers are being removed
        states.append(homeport.state())
        print(homeport.runtime, rounds, dict(failures), json.dumps(states[-1]), flush=True)
    return {
        "rounds": rounds,
        "per_s": rounds / seconds,
        "failures": dict(failures),
        "states": states,
    }


def gvisor_alone() -> float:
    """Median ms from calling ``runsc`` to the first output of a program, with nothing of ours."""
    runsc = shutil.which("runsc")
    assert runsc is not None
    found: list[float] = []
    with tempfile.TemporaryDirectory(prefix="homeport-runsc-") as folder:
        config = {
            "ociVersion": "1.0.2",
            "root": {"path": "/", "readonly": True},
            "process": {"args": ["/bin/echo", "x"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
        }
        (Path(folder) / "config.json").write_text(json.dumps(config))
        options = ("--root", f"{folder}/state", "--network=none", "--ignore-cgroups")
        for number in range(ALONE):
            command = [runsc, *options, "run", "--bundle", folder, f"alone-{number}"]
            began = time.monotonic()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            assert process.stdout
            with process.stdout:
                assert process.stdout.readline() == b"x\n"
                found.append((time.monotonic() - began) * 1000)
            process.wait(30)
    return statistics.median(found)


def measure(homeport: Homeport, least: dict[str, str], options: argparse.Namespace) -> Figures:
    """All figures of one runtime."""
    environ = homeport.environ
    client(environ, "first", "--count", 3)
    figures, floor_figures = in_turns(environ, least, options)
    figures["floor"] = floor_figures
    if homeport.runtime == "runsc":
        figures["alone_ms"] = gvisor_alone()
    print(homeport.runtime, _short(figures), flush=True)
    burst = client(environ, "churn", "--count", BURST, "--at-once", BURST)
    figures["burst_p50_ms"], figures["burst_p99_ms"] = burst["churn_p50_ms"], burst["churn_p99_ms"]
    if options.numpy:
        arguments = ("numpy", "--count", options.numpy, "--at-once", options.numpy)
        figures.update(client(environ, *arguments))
    if options.live:
        figures["many"] = many_live(homeport, options.live)
        print(homeport.runtime, _short(figures["many"]), flush=True)
    if options.creates:
        figures["thousands"] = thousands(homeport, options.creates)
        print(homeport.runtime, json.dumps(figures["thousands"]), flush=True)
    return figures


def unprepared(homeport: Homeport, options: argparse.Namespace) -> Figures:
    """Where no container waits for a sandbox."""
    arguments = ("first", "--count", options.firsts, "--pause", PAUSE_S)
    found = client(homeport.environ, *arguments)
    figures = {name.replace("first", "unprepared"): value for name, value in found.items()}
    print(homeport.runtime, _short(figures), flush=True)
    return figures


def cold(home: Path, runtime: str, count: int) -> Figures:
    """The first sandbox after each of so many starts of server and node."""
    taken: list[float] = []
    for _ in range(count):
        with Homeport(home, runtime) as homeport:
            taken.append(client(homeport.environ, "cold")["cold_p50_ms"])
    figures = {"cold_p50_ms": statistics.median(taken), "cold_p99_ms": max(taken)}
    print(runtime, _short(figures), flush=True)
    return figures


def memory() -> dict[str, int]:
    """``/proc/meminfo`` in KiB."""
    found: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0])
    return found


def _rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _medians(runs: list[Figures]) -> Figures:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _short(figures: Figures) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in figures.items() if isinstance(v, (int, float)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    there = [name for name in RUNTIMES if name == "bubblewrap" or shutil.which(name)]
    parser.add_argument("--runtimes", nargs="*", default=there, choices=RUNTIMES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--firsts", type=int, default=50, help="of a run, one after the other")
    parser.add_argument("--execs", type=int, default=200, help="of a run, one after the other")
    parser.add_argument("--numpy", type=int, default=100, help="at once")
    parser.add_argument("--live", type=int, default=500, help="at once")
    parser.add_argument("--creates", type=int, default=5000, help=f"in all, {AT_ONCE} at once")
    parser.add_argument("--home", type=Path, help="folder of states to use and keep")
    parser.add_argument("--no-write", action="store_true", help="leave the result files alone")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "settings": {"runs": options.runs, "firsts": options.firsts, "execs": options.execs},
        "burst": BURST,
        "cold": COLD,
        "at_once": AT_ONCE,
        "runtimes": {},
    }
    results["root_files"] = {"layers": LAYERS, **root_files_ms(LAYERS)}
    results["settings"].update(numpy=options.numpy, live=options.live, creates=options.creates)
    file = HERE / "sandboxes.json"
    if file.exists():  # those that are not measured now stay, with the date of their own
        kept: dict[str, Any] = json.loads(file.read_text())
        for name, figures in kept["runtimes"].items():
            if name not in options.runtimes:
                results["runtimes"][name] = {"date": kept["date"], **figures}
        if results["runtimes"]:
            results["note"] = kept.get("note", "")
            for name in ("numpy", "live", "creates"):
                results["settings"][name] = getattr(options, name) or kept["settings"][name]
    with tempfile.TemporaryDirectory(prefix="homeport-bench-") as folder, floor() as least:
        for runtime in options.runtimes:
            home = (options.home or Path(folder)).absolute() / runtime
            with Homeport(home, runtime) as homeport:
                results["runtimes"][runtime] = measure(homeport, least, options)
            results["runtimes"][runtime].update(cold(home, runtime, COLD))
            if runtime == "runsc":
                with Homeport(home, runtime, sandboxes_prepared_max=0) as homeport:
                    results["runtimes"][runtime].update(unprepared(homeport, options))
    if options.no_write:
        print(json.dumps(results, indent=2))
        return
    (HERE / "sandboxes.json").write_text(json.dumps(results, indent=2) + "\n")
    write_page()


if __name__ == "__main__":
    main()
