"""What one client process sees: latency of single calls, rate of a map. Prints one JSON object.

MODAL_SERVER_URL=… python benchmarks/client_side.py APP --calls 500 --inputs 10000
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import modal

WARM_UP = 30


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def single_calls(function: modal.Function, count: int) -> dict[str, float]:
    """Latency of ``.remote()`` one after the other, in milliseconds."""
    for number in range(WARM_UP):
        function.remote(number)
    taken: list[float] = []
    for number in range(count):
        began = time.perf_counter()
        function.remote(number)
        taken.append(1000 * (time.perf_counter() - began))
    return {
        "remote_p50_ms": statistics.median(taken),
        "remote_p99_ms": percentile(taken, 0.99),
        "remote_per_s": 1000 * count / sum(taken),
    }


def mapped(function: modal.Function, count: int) -> dict[str, float]:
    """Inputs per second of one ``.map``."""
    list(function.map(range(200), order_outputs=False))
    began, cpu = time.perf_counter(), time.process_time()
    total = sum(1 for _ in function.map(range(count), order_outputs=False))
    taken = time.perf_counter() - began
    assert total == count
    return {
        "map_per_s": count / taken,
        "map_client_cpu_us": 1e6 * (time.process_time() - cpu) / count,
    }


def wait_for_containers(function: modal.Function, count: int) -> None:
    """Until that many containers are up."""
    deadline = time.monotonic() + 300
    while function.get_current_stats().num_total_runners < count:
        assert time.monotonic() < deadline, "the containers did not start"
        time.sleep(0.2)
    time.sleep(1)


def first_calls(function: modal.Function, count: int) -> dict[str, float]:
    """Time of the first call while no container of the function runs, in seconds."""
    taken: list[float] = []
    for number in range(count):
        deadline = time.monotonic() + 60
        while function.get_current_stats().num_total_runners:
            assert time.monotonic() < deadline, "the container was not stopped"
            time.sleep(0.2)
        time.sleep(1)
        began = time.perf_counter()
        function.remote(number)
        taken.append(time.perf_counter() - began)
    return {"first_call_s": statistics.median(taken), "first_call_max_s": max(taken)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("app")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--containers", type=int, default=0, help="wait until so many are up")
    parser.add_argument("--first", type=int, default=0, help="cold starts to measure")
    options = parser.parse_args()
    found: dict[str, float] = {}
    function = modal.Function.from_name(options.app, "noop")
    if options.containers:
        wait_for_containers(function, options.containers)
    if options.calls:
        found.update(single_calls(function, options.calls))
    if options.inputs:
        found.update(mapped(function, options.inputs))
    if options.first:
        found.update(first_calls(modal.Function.from_name(options.app, "cold"), options.first))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
