"""Remote generators: sync and async, long, big, failing, abandoned."""

import asyncio
import time

import modal

app = modal.App("conformance-generators")


@app.function()
def count(n, fail_at=None):
    for index in range(n):
        if index == fail_at:
            raise ValueError(f"stopped at {index}")
        yield index


@app.function()
async def count_async(n, fail_at=None):
    for index in range(n):
        if index == fail_at:
            raise ValueError(f"stopped at {index}")
        await asyncio.sleep(0)
        yield index


@app.function()
def slowly():
    for word in ("one", "two", "three"):
        time.sleep(0.5)
        yield word


@app.function(max_containers=1)
def endless():
    number = 0
    while True:
        yield number
        number += 1
        time.sleep(0.01)


@app.function()
def big():
    for index in range(3):
        yield bytes([index]) * (3 * 1024 * 1024)


@app.cls()
class Numbers:
    @modal.method()
    def upto(self, n):
        yield from range(n)


@app.local_entrypoint()
def main():
    from reporting import Report

    check = Report().check
    check("sync", lambda: list(count.remote_gen(5)))
    check("async", lambda: list(count_async.remote_gen(5)))
    check("empty", lambda: list(count.remote_gen(0)))
    check("many", lambda: sum(1 for _ in count.remote_gen(3000)), timeout=120)
    check("in_order", lambda: list(count.remote_gen(500)) == list(range(500)))
    check("big", lambda: [[len(x), x[0]] for x in big.remote_gen()], timeout=120)
    check("method", lambda: list(Numbers().upto.remote_gen(4)))

    async def aio():
        return [value async for value in count_async.remote_gen.aio(4)]

    check("aio", aio)

    def failing(function):
        seen = []
        try:
            for value in function.remote_gen(9, fail_at=3):
                seen.append(value)
        except ValueError as error:
            return [seen, str(error)]
        return [seen, "no error"]

    check("failing", lambda: failing(count))
    check("failing_async", lambda: failing(count_async))

    def streamed():
        arrivals = []
        for _ in slowly.remote_gen():
            arrivals.append(time.monotonic())
        # The first value is here while later ones are still to be made.
        return arrivals[-1] - arrivals[0] > 0.5

    check("streamed", streamed)

    def abandoned():
        for value in count.remote_gen(100_000):
            if value == 3:
                return value
        return None

    check("abandoned", abandoned)
    check("after_abandoned", lambda: list(count.remote_gen(2)))

    def twice_abandoned():
        return [next(iter(endless.remote_gen())) for _ in range(2)]

    check("container_is_free_again", twice_abandoned)
