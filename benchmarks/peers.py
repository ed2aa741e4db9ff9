"""The same work on other systems, two workers each. Prints one JSON object.

    python benchmarks/peers.py ray --calls 500 --inputs 10000

Runs in an environment that has the peer installed; ``calls.py`` makes it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

One = Callable[[int], Any]
Many = Callable[[int], int]
HERE = Path(__file__).parent


def noop(x: object = None) -> object:
    return x


@contextlib.contextmanager
def pool(workers: int) -> Iterator[tuple[One, Many]]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as executor:

        def many(count: int) -> int:
            futures = [executor.submit(noop, n) for n in range(count)]
            return sum(1 for future in futures if future.result() is not None)

        yield lambda n: executor.submit(noop, n).result(), many


@contextlib.contextmanager
def dask(workers: int) -> Iterator[tuple[One, Many]]:
    from distributed import Client, LocalCluster

    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:

        def many(count: int) -> int:
            return len(client.gather(client.map(noop, range(count), pure=False)))

        yield lambda n: client.submit(noop, n, pure=False).result(), many


@contextlib.contextmanager
def ray(workers: int) -> Iterator[tuple[One, Many]]:
    import ray as ray_package

    os.environ["HOME"] = tempfile.mkdtemp()  # it leaves a token file in the home
    ray_package.init(
        num_cpus=workers,
        include_dashboard=False,
        object_store_memory=200 * 1024 * 1024,
        log_to_driver=False,
    )
    task = ray_package.remote(noop)
    try:
        yield (
            lambda n: ray_package.get(task.remote(n)),
            lambda count: len(ray_package.get([task.remote(n) for n in range(count)])),
        )
    finally:
        ray_package.shutdown()


@contextlib.contextmanager
def celery(workers: int, *, durable: bool = False) -> Iterator[tuple[One, Many]]:
    with redis(durable) as url, tempfile.TemporaryDirectory() as folder:
        os.environ["BENCH_REDIS_URL"] = url
        environ = {**os.environ, "PYTHONPATH": str(HERE)}
        command = [sys.executable, "-m", "celery", "-A", "peers_celery", "worker"]
        options = ["--concurrency", str(workers), "--loglevel", "error", "--without-mingle"]
        worker = subprocess.Popen([*command, *options], env=environ, cwd=folder)
        sys.path.insert(0, str(HERE))
        import peers_celery

        def many(count: int) -> int:
            results = [peers_celery.noop.delay(n) for n in range(count)]
            return sum(1 for result in results if result.get(timeout=120) is not None)

        try:
            yield lambda n: peers_celery.noop.delay(n).get(timeout=60), many
        finally:
            worker.terminate()
            worker.wait(30)


@contextlib.contextmanager
def redis(durable: bool) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed (apt install redis-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        append = ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
        options = ["--port", str(port), "--save", "", "--dir", folder, *append]
        server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(10)


PEERS: dict[str, Callable[[int], Any]] = {
    "pool": pool,
    "dask": dask,
    "ray": ray,
    "celery": celery,
    "celery-durable": lambda workers: celery(workers, durable=True),
}


def measure(one: One, many: Many, calls: int, inputs: int) -> dict[str, float]:
    for number in range(30):
        one(number)
    taken: list[float] = []
    for number in range(calls):
        began = time.perf_counter()
        one(number)
        taken.append(1000 * (time.perf_counter() - began))
    many(200)
    began = time.perf_counter()
    assert many(inputs) == inputs
    return {
        "remote_p50_ms": statistics.median(taken),
        "remote_p99_ms": sorted(taken)[int(len(taken) * 0.99)],
        "remote_per_s": 1000 * calls / sum(taken),
        "map_per_s": inputs / (time.perf_counter() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    began = time.perf_counter()
    with PEERS[options.peer](options.workers) as (one, many):
        one(0)
        first = time.perf_counter() - began
        found = measure(one, many, options.calls, options.inputs)
    print(json.dumps({**found, "start_s": first}))


if __name__ == "__main__":
    main()
