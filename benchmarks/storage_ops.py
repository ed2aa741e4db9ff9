"""Dict and Queue operations per second: Homeport (durable) against the floor of its protocol.

    python benchmarks/storage_ops.py [--runs 5] [--operations 1000]

The same client process code measures a server that answers at once from memory
(``storage_floor.py``) and Homeport, in turns; the best of the runs counts, as whatever else the
machine does only ever slows one down. The bar: Homeport takes at most 1.5 times as long.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
BAR = 1.5
IN_FLIGHT = 50
VALUE = b"x" * 100
Figures = dict[str, float]


# ── the client process ──────────────────────────────────────────────────────────────────────────


def measure(operations: int) -> Figures:
    """Operations per second of one client."""
    import modal

    store = modal.Dict.from_name("benchmark", create_if_missing=True)
    line = modal.Queue.from_name("benchmark", create_if_missing=True)
    store.clear()
    line.clear()
    found: Figures = {}

    def loop(name: str, call: Callable[[int], object], count: int = operations) -> None:
        began = time.perf_counter()
        for number in range(count):
            call(number)
        found[name] = count / (time.perf_counter() - began)

    def crowd(name: str, call: Callable[[int], Awaitable[object]]) -> None:
        async def worker(first: int) -> None:
            for number in range(first, operations, IN_FLIGHT):
                await call(number)

        async def main() -> None:
            await asyncio.gather(*(worker(first) for first in range(IN_FLIGHT)))

        began = time.perf_counter()
        asyncio.run(main())
        found[name] = operations / (time.perf_counter() - began)

    loop("warm-up", lambda n: store.put(n, VALUE), 50)
    loop("dict put", lambda n: store.put(n, VALUE))
    loop("dict get", store.get)
    loop("dict pop", store.pop)
    crowd("dict put, 50 at once", lambda n: store.put.aio(n, VALUE))
    crowd("dict get, 50 at once", lambda n: store.get.aio(n))
    began = time.perf_counter()
    entries = sum(1 for _ in store.items())
    found["dict items (entries)"] = entries / (time.perf_counter() - began)
    loop("queue put", lambda n: line.put(VALUE))
    loop("queue get", lambda n: line.get())
    crowd("queue put, 50 at once", lambda n: line.put.aio(VALUE))
    crowd("queue get, 50 at once", lambda n: line.get.aio())
    many = [VALUE] * 2000
    loop("queue put_many(2000) (calls)", lambda n: line.put_many(many), 2)
    loop("queue get_many(2000) (calls)", lambda n: line.get_many(2000), 2)

    async def hand_over() -> None:
        for _ in range(operations // 4):
            getter = asyncio.create_task(line.get.aio())
            await asyncio.sleep(0)
            await line.put.aio(VALUE)
            await getter

    began = time.perf_counter()
    asyncio.run(hand_over())
    found["queue put to a waiting get"] = (operations // 4) / (time.perf_counter() - began)
    del found["warm-up"]
    return found


# ── the servers ─────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def floor(program: str = "storage_floor.py") -> Iterator[dict[str, str]]:
    """The floor; yields the client's variables."""
    command = [sys.executable, HERE / program]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    try:
        url = process.stdout.readline().strip()
        assert url, "the floor did not start"
        yield {"MODAL_SERVER_URL": url, "MODAL_TOKEN_ID": "floor", "MODAL_TOKEN_SECRET": "floor"}
    finally:
        process.stdin.close()
        process.wait(30)


@contextlib.contextmanager
def homeport(home: Path) -> Iterator[dict[str, str]]:
    """A Homeport server without a node; yields the client's variables."""
    command = [sys.executable, "-m", "homeport.main", "serve", "--home", home, "--port", "0"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not (home / "run" / "server.json").exists():
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, "Homeport did not start"
            time.sleep(0.05)
        known = tomllib.loads((home / "credentials.toml").read_text())
        yield {
            "MODAL_SERVER_URL": known["server_url"],
            "MODAL_TOKEN_ID": known["token_id"],
            "MODAL_TOKEN_SECRET": known["token_secret"],
        }
    finally:
        process.terminate()
        process.wait(30)


def client(environ: dict[str, str], operations: int) -> Figures:
    """One client process against a server."""
    command = [sys.executable, __file__, "--client", "--operations", str(operations)]
    environment = {**os.environ, **environ, "MODAL_CONFIG_PATH": "/nonexistent"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--operations", type=int, default=1000)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(measure(options.operations)))
        return
    runs: dict[str, list[Figures]] = {"floor": [], "homeport": []}
    with tempfile.TemporaryDirectory() as folder, floor() as least, homeport(Path(folder)) as ours:
        for _ in range(options.runs):
            for name, environ in (("floor", least), ("homeport", ours)):
                runs[name].append(client(environ, options.operations))
    record("operations", compare(runs), options.runs)


def record(part: str, figures: dict[str, dict[str, float]], runs: int) -> None:
    """Keep what was measured in ``storage.json``, for the page of benchmarks."""
    from calls import machine

    file = HERE / "storage.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    date = datetime.date.today().isoformat()
    known[part] = {"date": date, "machine": machine(), "runs": runs, "figures": figures}
    rounded = json.loads(json.dumps(known), parse_float=lambda text: round(float(text), 2))
    file.write_text(json.dumps(rounded, indent=2) + "\n")


def compare(runs: dict[str, list[Figures]]) -> dict[str, dict[str, float]]:
    """Print and give the best rates of both, and how many times as long Homeport takes."""
    found: dict[str, dict[str, float]] = {}
    print(f"{'per second':32}{'floor':>12}{'Homeport':>12}{'times as long':>16}")
    for what in runs["floor"][0]:
        least, ours = (max(run[what] for run in runs[name]) for name in ("floor", "homeport"))
        ratio = least / ours
        verdict = "" if ratio <= BAR else "  missed"
        print(f"{what:32}{least:12.0f}{ours:12.0f}{ratio:16.2f}{verdict}")
        found[what] = {"floor": least, "homeport": ours, "times_as_long": ratio}
    return found


if __name__ == "__main__":
    main()
