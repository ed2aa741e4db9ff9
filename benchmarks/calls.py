"""What a call costs: Homeport against the floor of its protocol, and beside other systems.

    python benchmarks/calls.py                  # everything: three alternating runs, then the peers
    python benchmarks/calls.py --runs 1 --calls 100 --inputs 1000 --peers pool --no-write

Floor and Homeport are measured in turns by the same client process code, with the same number of
warm containers. Results: ``benchmarks/results.json`` and ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from report import render, write_page
from uv import find_uv_bin

HERE = Path(__file__).parent
PEERS = {
    "pool": [],
    "celery": ["celery[redis]>=5.4"],
    "celery-durable": ["celery[redis]>=5.4"],
    "dask": ["distributed>=2025"],
    "ray": ["ray>=2.40"],
}
PLAIN = {"HOMEPORT_SANDBOX_RUNTIME": ""}
"""No trial of gVisor while something is measured that has no sandboxes."""
Figures = dict[str, float]


def python(
    *arguments: object, environ: dict[str, str] | None = None, program: Path | str = sys.executable
) -> str:
    """Run Python and return what it printed; its standard error stays on the terminal."""
    command = [str(program), *map(str, arguments)]
    environment = {**PLAIN, **os.environ, **(environ or {})}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        name = Path(str(arguments[0])).name
        raise RuntimeError(f"{name} ended with {done.returncode} {done.stdout}".strip())
    return done.stdout


@contextlib.contextmanager
def floor(containers: int) -> Iterator[dict[str, str]]:
    """A floor server with its containers; yields the client's variables."""
    command = [sys.executable, HERE / "floor_server.py", "--containers", str(containers)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        url = process.stdout.readline().strip()
        assert url, "the floor server did not start"
        yield {"MODAL_SERVER_URL": url, "MODAL_TOKEN_ID": "floor", "MODAL_TOKEN_SECRET": "floor"}
    finally:
        process.stdin.close()
        process.wait(30)


@contextlib.contextmanager
def homeport(home: Path, containers: int) -> Iterator[dict[str, str]]:
    """A Homeport of its own with the benchmark's app deployed."""
    command = ("-m", "homeport.cli.main")
    print(python(*command, "up", "--detach", "--home", home, "--port", 0).strip())
    try:
        environ = json.loads(python(*command, "env", "--home", home, "--json"))
        more = {"BENCH_CONTAINERS": str(containers), "MODAL_CONFIG_PATH": str(home / "none.toml")}
        environ.update(more)
        python("-m", "modal", "deploy", HERE / "bench_app.py", environ=environ)
        yield environ
    finally:
        python(*command, "down", "--home", home)


def client(environ: dict[str, str], *arguments: object) -> Figures:
    """One client process against a server."""
    return json.loads(python(HERE / "client_side.py", "benchmark", *arguments, environ=environ))


def against_floor(options: argparse.Namespace, home: Path) -> dict[str, Figures]:
    """Medians of alternating runs, and the cold starts of Homeport."""
    work = ("--calls", options.calls, "--inputs", options.inputs)
    runs: dict[str, list[Figures]] = {"floor": [], "homeport": []}
    with homeport(home, options.containers) as ours, floor(options.containers) as least:
        client(ours, "--calls", 0, "--inputs", 0, "--containers", options.containers)
        for number in range(options.runs):
            for name, environ in (("floor", least), ("homeport", ours)):
                figures = client(environ, *work)
                runs[name].append(figures)
                print(f"run {number + 1}, {name}: {_short(figures)}")
        medians = {name: _medians(found) for name, found in runs.items()}
        if options.first:
            cold = client(ours, "--calls", 0, "--inputs", 0, "--first", options.first)
            print(f"first calls: {_short(cold)}")
            medians["homeport"].update(cold)
    return medians


def beside_peers(options: argparse.Namespace) -> tuple[dict[str, Figures], dict[str, str]]:
    """Figures of each peer that could be installed, and a note for each that could not."""
    figures: dict[str, Figures] = {}
    notes: dict[str, str] = {}
    for name in options.peers:
        try:
            program = peer_python(name)
            runs = [_peer(program, name, options) for _ in range(options.runs)]
        except (RuntimeError, subprocess.CalledProcessError) as error:
            notes[name] = str(error).strip().splitlines()[-1]
            print(f"{name}: not measured ({notes[name]})")
            continue
        figures[name] = _medians(runs)
        print(f"{name}: {_short(figures[name])}")
    return figures, notes


def _peer(program: Path, name: str, options: argparse.Namespace) -> Figures:
    work = ("--calls", options.calls, "--inputs", options.inputs, "--workers", options.containers)
    printed = python(HERE / "peers.py", name, *work, program=program)
    return json.loads(printed.splitlines()[-1])


def peer_python(name: str) -> Path:
    """The interpreter of an environment that has the peer; made on first use."""
    named = os.environ.get("HOMEPORT_BENCH_CACHE")
    cache = Path(named) if named else Path.home() / ".cache" / "homeport" / "bench-peers"
    folder = cache / (name.partition("-")[0])
    program = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        uv = (find_uv_bin(), "--quiet")
        subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, folder], check=True)
        if PEERS[name]:
            command = [*uv, "pip", "install", "--python", program, *PEERS[name]]
            subprocess.run(command, check=True)
        (folder / ".ready").touch()
    return program


def _medians(runs: list[Figures]) -> Figures:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _short(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def machine() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if "model name" in line), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    import modal

    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "client": modal.__version__,
        "load_before": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--containers", type=int, default=2, help="containers and workers of all")
    parser.add_argument("--first", type=int, default=5, help="cold starts to measure")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--home", type=Path, help="folder of Homeport's state to use and keep")
    parser.add_argument("--no-write", action="store_true", help="leave the result files alone")
    options = parser.parse_args()
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "settings": {name: getattr(options, name) for name in ("runs", "calls", "inputs")},
        "containers": options.containers,
    }
    with tempfile.TemporaryDirectory() as folder:
        results["calls"] = against_floor(
            options, (options.home or Path(folder) / "home").absolute()
        )
    peers, results["not_measured"] = beside_peers(options)
    results["calls"].update(peers)
    print(render(results))
    if not options.no_write:
        (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        write_page()


if __name__ == "__main__":
    main()
