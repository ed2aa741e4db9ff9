"""Many inputs: the map family, in order and out of it, with failures, sizes and spawns."""

import os
import time

import modal

app = modal.App("conformance-maps")
VERSION = tuple(int(part) for part in modal.__version__.split(".")[:2])


@app.function()
def square(x):
    return x * x


@app.function()
def add(a, b, scale=1):
    return (a + b) * scale


@app.function()
def picky(x):
    if x % 3 == 0:
        raise ValueError(f"{x} is a multiple of three")
    return x


@app.function()
def where(x):
    time.sleep(0.5)
    return os.environ["MODAL_TASK_ID"]


@app.function()
def staggered(x):
    time.sleep(0.6 if x == 0 else 0.0)
    return x


@app.function()
def size(blob):
    return len(blob)


@app.function()
def letters(n):
    yield from "abcdef"[:n]


@app.cls()
class Scale:
    factor: int = modal.parameter()

    @modal.method()
    def times(self, x):
        return self.factor * x


SEEN = []


@app.function(max_containers=1)
def remember(x):
    """Keep ``x``; without one, tell what was kept in this container."""
    if x is not None:
        SEEN.append(x)
    return sorted(SEEN)


@app.local_entrypoint()
def main():
    from reporting import Report

    report = Report()
    check = report.check
    ordinary(check)
    failures(check)
    large(check)
    spawned(check)


def ordinary(check):
    check("ordered", lambda: list(square.map(range(60))))
    check("unordered", lambda: sorted(square.map(range(60), order_outputs=False)))
    check("order_kept", lambda: list(staggered.map(range(20))))
    check("two_iterators", lambda: list(add.map(range(5), range(10, 15))))
    check("kwargs", lambda: list(add.map(range(3), range(3), kwargs={"scale": 10})))
    check("starmap", lambda: list(add.starmap([(1, 2), (3, 4)])))
    check("starmap_kwargs", lambda: list(add.starmap([(1, 2), (3, 4)], kwargs={"scale": 10})))
    check("method", lambda: list(Scale(factor=3).times.map(range(4))))
    check("for_each", lambda: square.for_each(range(10)))
    check("empty", lambda: list(square.map([])))
    check("one", lambda: list(square.map([5])))
    check("generator_input", lambda: list(square.map(x for x in range(7))))
    check("first_of_unordered", lambda: next(iter(staggered.map(range(9), order_outputs=False))))
    check("of_a_generator", lambda: list(letters.map([1, 2])))
    check("spread", lambda: len(set(where.map(range(12)))))

    async def aio():
        return [value async for value in square.map.aio(range(30))]

    check("aio", aio)

    async def aio_failures():
        found = picky.map.aio(range(5), order_outputs=False, return_exceptions=True)
        return sorted([x async for x in found if isinstance(x, int)])

    check("aio_failures", aio_failures)

    async def aio_starmap():
        return [value async for value in add.starmap.aio([(1, 1), (2, 2)])]

    check("starmap_aio", aio_starmap)

    def early_break():
        for value in square.map(range(500)):
            if value >= 16:
                return value
        return None

    check("early_break", early_break)
    check("after_break", lambda: list(square.map(range(3))))


def failures(check):
    check("raises", lambda: list(picky.map(range(1, 5))))

    def returned():
        options = {"return_exceptions": True}
        if VERSION < (1, 5):
            options["wrap_returned_exceptions"] = False
        found = picky.map(range(1, 7), **options)
        return [x if isinstance(x, int) else [type(x).__name__, str(x)] for x in found]

    check("return_exceptions", returned)
    check("for_each_ignore", lambda: picky.for_each(range(1, 7), ignore_exceptions=True))
    check("for_each_raises", lambda: picky.for_each(range(1, 7)))

    def broken():
        yield 1
        yield 2
        raise KeyError("the input iterator broke")

    check("failing_iterator", lambda: list(square.map(broken())))


def large(check):
    check("ten_thousand", lambda: sum(square.map(range(10_000), order_outputs=False)), timeout=240)
    blobs = [bytes(3 * 1024 * 1024 + n) for n in range(3)]
    check("blob_inputs", lambda: list(size.map(blobs)))


def spawned(check):
    from reporting import until

    def spawn_map():
        returned = remember.spawn_map(range(300))
        seen = until(lambda: [x for x in [remember.remote(None)] if len(x) >= 300])
        return [returned, seen == [list(range(300))]]

    check("spawn_map", spawn_map)
    if VERSION < (1, 1):
        return

    def experimental():
        call = square.experimental_spawn_map(range(70))
        return {
            "inputs": call.num_inputs(),
            "values": list(call.iter()),
            "part": list(call.iter(start=10, end=12)),
            "single": call.get(index=4, timeout=30),
        }

    check("experimental_spawn_map", experimental)

    def by_id():
        call = square.experimental_spawn_map(range(5))
        again = modal.FunctionCall.from_id(call.object_id)
        return [again.num_inputs(), again.get(index=3, timeout=30)]

    check("spawn_map_from_id", by_id)
