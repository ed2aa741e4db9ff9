"""Many inputs in one container, batches, and how many containers there are."""

import asyncio
import os
import threading
import time

import modal

app = modal.App("conformance-scaling")
VERSION = tuple(int(part) for part in modal.__version__.split(".")[:2])
SINGLE_USE = {"single_use_containers": True} if VERSION >= (1, 3) else {"max_inputs": 1}


class Meeting:
    """Lets inputs through only when ``size`` of them are inside at once."""

    def __init__(self, size):
        self.barrier = threading.Barrier(size)


MEETINGS = {}
LOCK = threading.Lock()
ACTIVE = 0


@app.function(max_containers=1)
@modal.concurrent(max_inputs=5)
def meet(size):
    with LOCK:
        meeting = MEETINGS.setdefault(size, Meeting(size))
    meeting.barrier.wait(timeout=30)
    return os.getpid()


@app.function(max_containers=1)
@modal.concurrent(max_inputs=8, target_inputs=4)
async def meet_async(size):
    global ACTIVE
    ACTIVE += 1
    deadline = time.monotonic() + 30
    while size > ACTIVE and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    peak = ACTIVE
    return peak >= size


@app.function(max_containers=1)
def one_at_a_time(x):
    global ACTIVE
    ACTIVE += 1
    inside = ACTIVE
    time.sleep(0.1)
    ACTIVE -= 1
    return inside


@app.function(max_containers=1)
@modal.batched(max_batch_size=4, wait_ms=1000)
def batch(xs, ys):
    return [[x + y, len(xs)] for x, y in zip(xs, ys, strict=True)]


@app.function(max_containers=1)
@modal.batched(max_batch_size=3, wait_ms=500)
async def batch_async(xs):
    return [len(xs)] * len(xs)


@app.function(max_containers=1)
@modal.batched(max_batch_size=3, wait_ms=500)
def batch_failing(xs):
    raise ValueError("the whole batch fails")


@app.function(max_containers=1)
@modal.batched(max_batch_size=3, wait_ms=500)
def batch_wrong_length(xs):
    return [1]


@app.function(**SINGLE_USE)
def single_use(x):
    return os.environ["MODAL_TASK_ID"]


@app.function(max_containers=2)
def at_most_two(x):
    time.sleep(0.4)
    return os.environ["MODAL_TASK_ID"]


@app.function(min_containers=1)
def kept_warm():
    return os.environ["MODAL_TASK_ID"]


@app.function(scaledown_window=2)
def short_lived():
    return os.environ["MODAL_TASK_ID"]


@app.function(buffer_containers=1)
def buffered(seconds):
    time.sleep(seconds)
    return os.environ["MODAL_TASK_ID"]


@app.function(max_containers=1)
def busy(seconds):
    time.sleep(seconds)
    return seconds


@app.function()
def adjustable():
    return os.environ["MODAL_TASK_ID"]


@app.function(cpu=0.5, memory=256, scaledown_window=60)
def resources():
    return {"cpus": os.cpu_count(), "affinity": len(os.sched_getaffinity(0))}


@app.local_entrypoint()
def main():
    from reporting import Report, until

    report = Report()
    check = report.check

    def runners(function):
        return function.get_current_stats().num_total_runners

    check("min_containers", lambda: until(lambda: runners(kept_warm), timeout=40))
    check("min_containers_used", kept_warm.remote)
    concurrency(check)
    batching(check)
    containers(check, until, runners)


def concurrency(check):
    check("concurrent", lambda: len(set(meet.map([5] * 5))))
    check("concurrent_async", lambda: list(meet_async.map([4] * 4)))
    check("one_at_a_time", lambda: max(one_at_a_time.map(range(6))))


def batching(check):
    check("batched", lambda: list(batch.map(range(8), range(8))))
    check("batched_single", lambda: batch.remote(1, 2))
    check("batched_keywords", lambda: batch.remote(xs=1, ys=2))
    check("batched_async", lambda: list(batch_async.map(range(6))))

    def outcomes(function):
        options = {"return_exceptions": True}
        if VERSION < (1, 5):
            options["wrap_returned_exceptions"] = False
        return sorted(f"{type(x).__name__}: {x}" for x in function.map(range(3), **options))

    check("batched_failing", lambda: outcomes(batch_failing))
    check("batched_wrong_length", lambda: outcomes(batch_wrong_length))


def containers(check, until, runners):
    check("single_use", lambda: len(set(single_use.map(range(4)))), timeout=90)
    check("max_containers", lambda: len(set(at_most_two.map(range(10)))))

    def scaledown():
        first = short_lived.remote()
        gone = until(lambda: runners(short_lived) == 0, timeout=40)
        return [gone, short_lived.remote() != first]

    check("scaledown", scaledown, timeout=90)

    def buffer():
        call = buffered.spawn(8)
        most = until(lambda: runners(buffered) >= 2, timeout=40)
        call.get(timeout=40)
        return most

    check("buffer_containers", buffer, timeout=90)

    def backlog():
        calls = [busy.spawn(1.5) for _ in range(4)]
        seen = until(lambda: busy.get_current_stats().backlog >= 2, timeout=10, pause=0.1)
        values = [call.get(timeout=40) for call in calls]
        return [seen, values, busy.get_current_stats().backlog]

    check("backlog", backlog)

    def update():
        before = runners(adjustable)
        adjustable.update_autoscaler(min_containers=1)
        raised = until(lambda: runners(adjustable) == 1, timeout=40)
        adjustable.update_autoscaler(min_containers=0, scaledown_window=2)
        lowered = until(lambda: runners(adjustable) == 0, timeout=40)
        return [before, raised, lowered]

    check("update_autoscaler", update, timeout=100)
    check("resources", resources.remote)
