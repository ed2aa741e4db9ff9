"""A lot at once, and containers that die under it."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import modal

app = modal.App("conformance-stress")


@app.function()
def increment(x):
    return x + 1


@app.function(retries=0)
def sometimes_dies(x):
    if x in (3, 11, 17):
        os._exit(3)
    return x


@app.function(memory=(64, 256))
def eat(mebibytes):
    hoard = []
    for _ in range(mebibytes // 16):
        hoard.append(bytearray(os.urandom(1)) * (16 * 1024 * 1024))
        time.sleep(0.01)
    return len(hoard)


@app.function()
def chatter(lines):
    for number in range(lines):
        print(f"line {number:06d}")
    return lines


@app.local_entrypoint()
def main():
    from reporting import Report

    report = Report()
    check = report.check

    def threads():
        with ThreadPoolExecutor(50) as pool:
            return sum(pool.map(increment.remote, range(1000)))

    check("threads", threads, timeout=180)

    def dying():
        found = sometimes_dies.map(range(24), return_exceptions=True)
        return [x if isinstance(x, int) else f"{type(x).__name__}: {x}" for x in found]

    check("dying_map", dying, timeout=240)
    check("memory", lambda: eat.remote(1024), timeout=120)
    check("memory_within", lambda: eat.remote(64), timeout=60)
    check("lines", lambda: chatter.remote(100_000), timeout=120)
