"""What goes wrong in functions, and what the caller sees of it."""

import os
import sys
import threading
import time
import types

import modal

app = modal.App("conformance-failures")
VERSION = tuple(int(part) for part in modal.__version__.split(".")[:2])


class OutOfPaperError(Exception):
    """A type of the program's own, with state."""

    def __init__(self, tray, sheets):
        super().__init__(tray, sheets)
        self.tray = tray
        self.sheets = sheets


class UnpicklableError(Exception):
    def __init__(self):
        super().__init__("holds a lock")
        self.lock = threading.Lock()


@app.function()
def fail(kind):
    if kind == "custom":
        raise OutOfPaperError("tray two", 3)
    if kind == "builtin":
        raise KeyError("missing key")
    if kind == "chained":
        try:
            deep_down()
        except ZeroDivisionError as error:
            raise RuntimeError("the outer one") from error
    if kind == "unpicklable":
        raise UnpicklableError()
    if kind == "unknown_type":
        raise only_there("OnlyThere", Exception)("odd")
    if kind == "exit":
        sys.exit(3)
    return "fine"


def deep_down():
    return 1 / 0


@app.function()
def give(kind):
    if kind == "lock":
        return threading.Lock()
    if kind == "unknown":
        return only_there("Thing", object)()
    return kind


def only_there(name, base):
    """A class in a module that exists in the container and nowhere else."""
    module = types.ModuleType("module_of_the_container")
    sys.modules[module.__name__] = module
    made = type(name, (base,), {"__module__": module.__name__})
    setattr(module, name, made)
    return made


ATTEMPTS = {}


def attempt(tag, failures):
    """Fail the first ``failures`` attempts under ``tag``; counts live in the one container."""
    ATTEMPTS[tag] = ATTEMPTS.get(tag, 0) + 1
    if ATTEMPTS[tag] <= failures:
        raise RuntimeError(f"attempt {ATTEMPTS[tag]} of {tag}")
    return ATTEMPTS[tag]


@app.function(max_containers=1, retries=3)
def retried(tag, failures):
    return ATTEMPTS.get(tag, 0) if failures is None else attempt(tag, failures)


@app.function(
    max_containers=1,
    retries=modal.Retries(max_retries=2, initial_delay=0.0, backoff_coefficient=1.0),
)
def retried_quickly(tag, failures):
    return ATTEMPTS.get(tag, 0) if failures is None else attempt(tag, failures)


@app.function(max_containers=1)
def not_retried(tag, failures):
    return ATTEMPTS.get(tag, 0) if failures is None else attempt(tag, failures)


@app.function(timeout=2)
def limited(seconds):
    time.sleep(seconds)
    return "in time"


@app.function(timeout=2)
async def limited_async(seconds):
    import asyncio

    await asyncio.sleep(seconds)
    return "in time"


@app.function(timeout=2)
def stubborn():
    # Takes no notice of being interrupted: only the end of its container stops it.
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            time.sleep(120)
        except BaseException:
            pass


@app.function()
def die(code):
    if code:
        os._exit(code)
    return "alive"


@app.cls()
class NoModel:
    @modal.enter()
    def load(self):
        raise FileNotFoundError("no weights at /models/none")

    @modal.method()
    def use(self):
        return "unreachable"


# Before 1.1.4 the timeout of inputs was that of the start, too.
@app.cls(**{"startup_timeout" if VERSION >= (1, 2) else "timeout": 3})
class SlowStart:
    @modal.enter()
    def load(self):
        time.sleep(120)

    @modal.method()
    def use(self):
        return "unreachable"


@app.local_entrypoint()
def main():
    from reporting import Report

    check = Report().check
    exceptions(check)
    retries(check)
    timeouts(check)
    starts(check)


def exceptions(check):
    def custom():
        try:
            fail.remote("custom")
        except OutOfPaperError as error:
            return [type(error).__name__, error.tray, error.sheets]

    check("custom_type", custom)
    check("custom_traceback", lambda: fail.remote("custom"))
    check("builtin", lambda: fail.remote("builtin"))
    check("chained", lambda: fail.remote("chained"))
    check("unpicklable", lambda: fail.remote("unpicklable"))
    check("unknown_type", lambda: fail.remote("unknown_type"))
    check("system_exit", lambda: fail.remote("exit"))
    check("unpicklable_result", lambda: give.remote("lock"))
    check("unknown_result", lambda: give.remote("unknown"))
    check("unpicklable_argument", lambda: give.remote(threading.Lock()))
    check("still_works", lambda: fail.remote("none"))
    check("spawned", lambda: fail.spawn("custom").get(timeout=30))


def retries(check):
    check("retries_recover", lambda: retried.remote("a", 2))
    check("retries_exhausted", lambda: retried.remote("b", 99))
    check("retries_count", lambda: retried.remote("b", None))
    check("policy_recover", lambda: retried_quickly.remote("c", 2))
    check("policy_exhausted", lambda: retried_quickly.remote("d", 99))
    check("policy_count", lambda: retried_quickly.remote("d", None))
    check("policy_spawn", lambda: retried_quickly.spawn("e", 1).get(timeout=40))
    check("policy_map", lambda: list(retried_quickly.starmap([(f"m{n}", 1) for n in range(4)])))
    check("no_retries", lambda: not_retried.remote("f", 1))
    check("no_retries_count", lambda: not_retried.remote("f", None))


def timeouts(check):
    check("timeout", lambda: limited.remote(60))
    check("timeout_async", lambda: limited_async.remote(60))
    check("in_time", lambda: limited.remote(0))
    check("timeout_spawn", lambda: limited.spawn(60).get(timeout=40))
    check("timeout_map", timed_map)
    check("stubborn", stubborn.remote)


def timed_map():
    options = {"wrap_returned_exceptions": False} if VERSION < (1, 5) else {}
    found = limited.map([0, 60, 0], return_exceptions=True, **options)
    return [x if isinstance(x, str) else f"{type(x).__name__} {x}" for x in found]


def starts(check):
    check("process_dies", lambda: die.remote(3), timeout=120)
    check("after_death", lambda: die.remote(0))
    check("startup_timeout", lambda: SlowStart().use.remote(), timeout=120)
    check("enter_raises", lambda: NoModel().use.remote(), timeout=120)
