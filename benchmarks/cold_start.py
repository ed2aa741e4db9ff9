"""From no container to the result: how long, with waiting containers and without.

    python benchmarks/cold_start.py                     # 20 starts of each kind
    python benchmarks/cold_start.py --starts 5 --no-write

Needs root. Every call gets a container of its own, which ends with it; images are in the cache. Before
each call the side that keeps containers waiting is given the time to have one. What is measured is
what the caller sees: ``.remote()`` of the official client, or a web request. Results:
``benchmarks/cold_start.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from web import START_S, Side, free_port, process

from homeport.node.leaks import find_leaks

HERE = Path(__file__).parent
KINDS = ("noop", "web", "plain", "snapshotted")
CALLER = """
import json, sys, time
import modal
name = "bench-cold-start"
if sys.argv[1] == "noop":
    call = modal.Function.from_name(name, "noop").remote
else:
    call = modal.Cls.from_name(name, sys.argv[1].capitalize())().predict.remote
for line in sys.stdin:
    began = time.perf_counter()
    call()
    print(time.perf_counter() - began, flush=True)
"""


def waiting(home: Path) -> set[str]:
    """Containers that wait (their own ones and the tools' that hold them are one)."""
    return {line.rpartition(":")[2] for line in find_leaks(home) if ":tp-" in line}


def all_containers(home: Path) -> int:
    return sum(line.startswith("container process") for line in find_leaks(home))


def settle(home: Path, templates: int, others: set[str]) -> None:
    """Until nothing but what waits is left, and one besides ``others`` waits if any should."""
    deadline = time.monotonic() + 120
    seen, since = -1, time.monotonic()
    while time.monotonic() < deadline:
        now = all_containers(home)
        if now != seen or (not waiting(home) - others) != (templates == 0):
            seen, since = now, time.monotonic()
        if time.monotonic() - since > 1.0:
            return
        time.sleep(0.05)
    left = "\n".join(find_leaks(home))
    raise RuntimeError(
        f"the containers do not settle; {len(waiting(home))} wait; there are\n{left}"
    )


def measured(calls: Callable[[], float], starts: int, home: Path, templates: int) -> dict[str, Any]:
    others = waiting(home)  # of other kinds
    calls()  # the first one makes what is made once: layers, bytecode, the first template
    times: list[float] = []
    for _ in range(starts):
        settle(home, templates, others)
        times.append(calls() * 1000)
    times.sort()
    print(f"{statistics.median(times):.1f} ms of {starts}", file=sys.stderr)
    return {
        "p50_ms": round(statistics.median(times), 1),
        "min_ms": round(times[0], 1),
        "p90_ms": round(times[int(0.9 * (len(times) - 1))], 1),
        "starts": starts,
    }


def side(folder: Path, home: Path, templates: int, starts: int, kinds: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "homeport.cli.main"]
    port = free_port()
    results: dict[str, Any] = {}
    environ = {"HOMEPORT_TEMPLATES_MAX": str(templates)}
    log = folder / "output.log"
    log.write_bytes(b"")
    up = [*command, "up", "--home", home, "--port", port]
    with process(up, folder, **environ) as started:
        deadline = time.monotonic() + START_S
        while b" is ready at " not in log.read_bytes():
            if time.monotonic() > deadline or started.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.1)
        done = subprocess.run(
            [*command, "env", "--home", home, "--json"], check=True, stdout=subprocess.PIPE
        )
        client = {**os.environ, **json.loads(done.stdout)}
        deploy = [sys.executable, "-m", "modal", "deploy", HERE / "cold_app.py"]
        subprocess.run(deploy, env=client, check=True, stdout=subprocess.DEVNULL)
        for kind in kinds:
            if kind == "web":
                target = Side("web", port, "homeport--bench-cold-start-web.localhost", started.pid)

                def request(target: Side = target) -> float:
                    began = time.perf_counter()
                    if target.get(60) != 200:
                        raise RuntimeError("the web function does not answer")
                    return time.perf_counter() - began

                results[kind] = measured(request, starts, home, templates)
                continue
            with subprocess.Popen(
                [sys.executable, "-c", CALLER, kind],
                env=client,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as caller:

                def call(caller: subprocess.Popen[str] = caller) -> float:
                    assert caller.stdin is not None
                    assert caller.stdout is not None
                    caller.stdin.write("call\n")
                    caller.stdin.flush()
                    return float(caller.stdout.readline())

                results[kind] = measured(call, starts, home, templates)
                assert caller.stdin is not None
                caller.stdin.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--home", type=Path, help="one with the images; default: a new one")
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cold-") as name:
        home = options.home or Path(name) / "home"
        found = {
            label: side(Path(name), home, templates, options.starts, options.kinds)
            for label, templates in (("waiting", 8), ("from_nothing", 0))
        }
    results = {
        "date": str(date.today()),
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}",
        "load": os.getloadavg()[0],
        **found,
    }
    print(json.dumps(results, indent=2))
    if not options.no_write:
        (HERE / "cold_start.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
