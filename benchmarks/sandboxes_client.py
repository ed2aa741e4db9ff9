"""What one client process sees of sandboxes. Prints one JSON object.

MODAL_SERVER_URL=… python benchmarks/sandboxes_client.py first --count 100
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import modal

LIFE_S = 1800
HELLO = ("echo", "hello")
NUMPY = "import numpy; print(numpy.arange(10).sum())"

image = modal.Image.debian_slim(python_version="3.11")
numpy_image = image.uv_pip_install("numpy==2.2.6")


def summary(name: str, taken_s: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    ordered = sorted(1000 * value for value in taken_s)
    return {
        f"{name}_p50_ms": statistics.median(ordered),
        f"{name}_p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
    }


class Client:
    """The measurements; each returns its figures."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._count: int = options.count
        self._at_once: int = options.at_once
        self._pause_s: float = options.pause
        self._app: modal.App
        self.failures = Counter[str]()

    async def run(self, what: str) -> dict[str, Any]:
        self._app = await modal.App.lookup.aio("benchmark-sandboxes", create_if_missing=True)
        method: Callable[[], Awaitable[dict[str, Any]]] = getattr(self, what)
        return {**await method(), "failures": dict(self.failures)}

    async def _create(self, *command: str, **options: Any) -> modal.Sandbox:
        options.setdefault("image", image)
        return await modal.Sandbox.create.aio(*command, app=self._app, timeout=LIFE_S, **options)

    async def _hello(self, sandbox: modal.Sandbox) -> float:
        """Run a program to its end; when its output was there."""
        process = await sandbox.exec.aio(*HELLO)
        output = await process.stdout.read.aio()
        came = time.perf_counter()
        assert output == "hello\n", output
        assert await process.wait.aio() == 0
        return came

    async def _round(self) -> float:
        """A sandbox from nothing to nothing; the seconds to its first output."""
        began = time.perf_counter()
        sandbox = await self._create()
        try:
            return await self._hello(sandbox) - began
        finally:
            await sandbox.terminate.aio()

    async def _in_parallel(self, work: Callable[[], Awaitable[float]]) -> tuple[list[float], float]:
        """Do it ``count`` times, ``at_once`` at a time: what each gave, and the seconds of all."""
        left = iter(range(self._count))
        results: list[float] = []

        async def worker() -> None:
            for _ in left:
                try:
                    results.append(await work())
                except Exception as error:
                    self.failures[f"{type(error).__name__}: {error}"[:200]] += 1

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(self._at_once)))
        return results, time.perf_counter() - began

    async def first(self) -> dict[str, Any]:
        """From create to the first output of an exec, one after the other."""
        taken: list[float] = []
        await self._round()
        for _ in range(self._count):
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
            taken.append(await self._round())
        return summary("first", taken)

    async def cold(self) -> dict[str, Any]:
        """The same, of one sandbox, by a client that has done all but that."""
        await image.build.aio(self._app)
        return summary("cold", [await self._round()])

    async def exec(self) -> dict[str, Any]:
        """Programs one after the other in one sandbox: start, output, end."""
        sandbox = await self._create()
        taken: list[float] = []
        for number in range(self._count + 10):
            began = time.perf_counter()
            await self._hello(sandbox)
            if number >= 10:
                taken.append(time.perf_counter() - began)
        await sandbox.terminate.aio()
        return summary("exec", taken)

    async def churn(self) -> dict[str, Any]:
        """Sandboxes that come, run a program and go, some at a time."""
        taken, total = await self._in_parallel(self._round)
        return {"per_s": len(taken) / total, "rounds": len(taken), **summary("churn", taken)}

    async def numpy(self) -> dict[str, Any]:
        """Sandboxes at once that each import numpy."""

        async def one() -> float:
            began = time.perf_counter()
            sandbox = await self._create("python", "-c", NUMPY, image=numpy_image)
            output = await sandbox.stdout.read.aio()
            assert output == "45\n", output + await sandbox.stderr.read.aio()
            return time.perf_counter() - began

        await numpy_image.build.aio(self._app)
        await one()
        taken, total = await self._in_parallel(one)
        return {"numpy_all_s": total, **summary("numpy", taken)}

    async def live(self) -> dict[str, Any]:
        """Sandboxes that all live at once; says so, and ends them when its input ends."""
        sandboxes: list[modal.Sandbox] = []

        async def one() -> float:
            began = time.perf_counter()
            sandbox = await self._create("sleep", "infinity")
            await self._hello(sandbox)
            sandboxes.append(sandbox)
            return time.perf_counter() - began

        taken, total = await self._in_parallel(one)
        alive = [await sandbox.poll.aio() for sandbox in sandboxes].count(None)
        print(json.dumps({"live": alive}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        began = time.perf_counter()
        gate = asyncio.Semaphore(self._at_once)

        async def end(sandbox: modal.Sandbox) -> None:
            async with gate:
                await sandbox.terminate.aio()
                await sandbox.wait.aio(raise_on_termination=False)

        await asyncio.gather(*(end(sandbox) for sandbox in sandboxes))
        ended = time.perf_counter() - began
        return {"live": alive, "live_s": total, "end_s": ended, **summary("live", taken)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["first", "cold", "exec", "churn", "numpy", "live"])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two, for pools")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(Client(options).run(options.what))))


if __name__ == "__main__":
    main()
