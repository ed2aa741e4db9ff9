"""A lot at once, and containers that die under it."""

import os
import sys
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


@app.function()
def one_long_line(characters):
    print("<" + "x" * characters, end=">")
    return characters


@app.function(retries=0)
def last_words(lines):
    for number in range(lines):
        print(f"last word {number:04d}")
    sys.stdout.flush()
    os._exit(7)


@app.cls(memory=(64, 200))
class Hungry:
    @modal.enter()
    def load(self):
        self.model = [bytearray(os.urandom(1)) * (16 * 1024 * 1024) for _ in range(64)]

    @modal.method()
    def answer(self):
        return len(self.model)


@app.local_entrypoint()
def main():
    from reporting import Report

    report = Report()
    check = report.check

    def threads():
        with ThreadPoolExecutor(50) as pool:
            return sum(pool.map(increment.remote, range(1000)))

    check("threads", threads, timeout=400)

    def dying():
        found = sometimes_dies.map(range(24), return_exceptions=True)
        return [x if isinstance(x, int) else f"{type(x).__name__}: {x}" for x in found]

    check("dying_map", dying, timeout=400)
    check("memory", lambda: eat.remote(1024), timeout=120)
    check("memory_within", lambda: eat.remote(64), timeout=60)
    check("memory_at_start", lambda: Hungry().answer.remote(), timeout=120)
    check("lines", lambda: chatter.remote(100_000), timeout=120)
    check("long_line", lambda: one_long_line.remote(1_000_000), timeout=60)
    check("last_words", lambda: last_words.remote(1000), timeout=120)
