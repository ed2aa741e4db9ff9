"""What it costs that nothing is lost: the same map without a journal, and with each durability.

    python benchmarks/durability.py --runs 5 --inputs 10000

Three servers with a node each, warm containers, measured in turns by the same client program.
``none`` is the server without a journal of calls (``unjournalled.py``). Results:
``benchmarks/durability.json``, and in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

from calls import PLAIN, client, machine, python
from report import write_page

from homeport.cli.instance import health

HERE = Path(__file__).parent
MODES = {
    "none": [HERE / "unjournalled.py"],
    "process": ["-m", "homeport.main"],
    "power": ["-m", "homeport.main"],
}
START_S = 120.0


@contextlib.contextmanager
def server(home: Path, mode: str, containers: int) -> Iterator[dict[str, str]]:
    """A server of ``mode`` and its node, with the benchmark's app deployed and warm."""
    home.mkdir(parents=True)
    durability = "power" if mode == "power" else "process"
    environ = {**PLAIN, **os.environ, "HOMEPORT_DURABILITY": durability}
    with contextlib.ExitStack() as stack:
        serve = [*MODES[mode], "serve", "--home", home, "--port", "0"]
        start(stack, serve, home / "server.log", environ)
        url = ""
        deadline = time.monotonic() + START_S
        while not (url and (health(url) or {}).get("nodes")):
            assert time.monotonic() < deadline, (home / "server.log").read_text()[-3000:]
            time.sleep(0.1)
            if not url and (home / "run" / "server.json").exists():
                known = tomllib.loads((home / "credentials.toml").read_text())
                url = known["server_url"]
                node = ["-m", "homeport.node.main", "--home", home, "--server", url]
                start(stack, node, home / "node.log", environ)
        found = {
            "MODAL_SERVER_URL": url,
            "MODAL_TOKEN_ID": known["token_id"],
            "MODAL_TOKEN_SECRET": known["token_secret"],
            "MODAL_CONFIG_PATH": str(home / "none.toml"),
            "BENCH_CONTAINERS": str(containers),
        }
        python("-m", "modal", "deploy", HERE / "bench_app.py", environ=found)
        client(found, "--calls", 0, "--inputs", 0, "--containers", containers)
        yield found


def start(
    stack: contextlib.ExitStack, command: list[object], log: Path, environ: dict[str, str]
) -> None:
    """A process that is ended with ``stack``."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        env=environ,
    )
    stack.callback(process.wait, 60)
    stack.callback(process.terminate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--containers", type=int, default=2)
    parser.add_argument("--no-write", action="store_true", help="leave the result file alone")
    options = parser.parse_args()
    before = machine()
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = {
            mode: stack.enter_context(server(Path(folder) / mode, mode, options.containers))
            for mode in MODES
        }
        for number in range(options.runs):
            for mode, environ in servers.items():
                figures = client(environ, "--calls", 0, "--inputs", options.inputs)
                rates[mode].append(figures["map_per_s"])
                print(f"run {number + 1}, {mode}: {figures['map_per_s']:.0f} inputs/s", flush=True)
    medians = {mode: statistics.median(found) for mode, found in rates.items()}
    shares = {mode: medians[mode] / medians["none"] for mode in MODES}
    for mode, share in shares.items():
        print(f"{mode}: {medians[mode]:.0f} inputs/s, {share:.0%} of those without a journal")
    if not options.no_write:
        results = {"date": time.strftime("%Y-%m-%d"), "machine": before, "inputs": options.inputs}
        results["map_per_s"] = rates
        results["of_no_journal"] = shares
        (HERE / "durability.json").write_text(json.dumps(results, indent=2) + "\n")
        write_page()


if __name__ == "__main__":
    main()
