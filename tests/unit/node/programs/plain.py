"""Functions run by the official entrypoint in the node's tests."""

import asyncio
import os
import sys
import time


def double(x):
    print(f"doubling {x}")
    return 2 * x


def echo_err(x):
    print(f"out {x}")
    print(f"err {x}", file=sys.stderr)
    return x


def count(n):
    yield from range(n)


def fail(text):
    raise ValueError(text)


def surroundings(names):
    """What a program may see of how it was started."""
    main = sys.modules["__main__"]
    return {
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "env": {name: os.environ.get(name) for name in names},
        "argv": sys.argv,
        "path": sys.path,
        "stdin": os.readlink("/proc/self/fd/0"),
        "main": [main.__spec__.name, main.__file__, main.__package__],
        "left over": [name for name in ("wait", "become", "ENTRYPOINT") if hasattr(main, name)],
    }


def crash(code):
    print("about to crash", file=sys.stderr)
    os._exit(code)


def sleep(seconds):
    print("begun", flush=True)
    time.sleep(seconds)
    return seconds


async def asleep(seconds):
    print("begun", flush=True)
    await asyncio.sleep(seconds)
    return seconds


def stubborn(seconds):
    """Swallows everything but SIGKILL."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(end - time.monotonic())
        except BaseException:
            pass


def batch(xs):
    return [sum(xs)] * len(xs)


def batch_sleep(xs):
    time.sleep(xs[0])
    return xs
