"""Single calls: arguments, async, spawn, handles, secrets, payload sizes, serialized functions."""

import asyncio
import hashlib
import os
import sys
import time

import modal

app = modal.App("conformance-calls")
MEBI = 1024 * 1024
VERSION = tuple(int(part) for part in modal.__version__.split(".")[:2])


@app.function()
def describe(a, b=2, *rest, c=3, **extra):
    return {"a": a, "b": b, "rest": list(rest), "c": c, "extra": extra}


@app.function()
async def add_later(a, b):
    await asyncio.sleep(0.01)
    return a + b


@app.function(
    secrets=[
        modal.Secret.from_dict({"GREETING": "hallo", "SHARED": "first"}),
        modal.Secret.from_dict({"SECOND": "two words", "SHARED": "second"}),
    ]
)
def surroundings():
    import socket

    names = ("GREETING", "SECOND", "SHARED", "MODAL_IS_REMOTE", "MODAL_TASK_ID", "MODAL_IMAGE_ID")
    return {
        "environ": {name: os.environ.get(name) for name in names},
        "is_local": modal.is_local(),
        "cwd": os.getcwd(),
        "hostname": socket.gethostname(),
        "python": list(sys.version_info[:2]),
        "file": __file__,
        "client": modal.__version__,
        "writable": _can_write("/root", "/tmp", "/var/tmp", "/opt"),
        "resolves": socket.gethostbyname("localhost"),
    }


def _can_write(*folders):
    for folder in folders:
        path = os.path.join(folder, "probe")
        with open(path, "w") as file:
            file.write("x")
        os.unlink(path)
    return True


@app.function()
def identify():
    return [modal.current_input_id(), modal.current_function_call_id()]


@app.function()
def nap(seconds, value=None):
    time.sleep(seconds)
    return value


@app.function()
async def nap_async(seconds, value=None):
    await asyncio.sleep(seconds)
    return value


@app.function(max_containers=1)
def narrow(seconds):
    time.sleep(seconds)
    return seconds


@app.function()
def digest(blob):
    return [len(blob), hashlib.sha256(blob).hexdigest()]


@app.function()
def make(size):
    return bytes(size // MEBI * [7]) * MEBI


# The oldest clients allow a name of one's own for serialized functions only.
@app.function(name="renamed", serialized=VERSION < (1, 2))
def original_name():
    return "found by its given name"


@app.local_entrypoint()
def main():
    from reporting import Report

    check = Report().check
    single_calls(check)
    spawned_calls(check)
    payloads(check)


def single_calls(check):
    check("positional", lambda: describe.remote(1))
    check("keywords", lambda: describe.remote(a=1, c="x", z=26))
    check("variadic", lambda: describe.remote(1, 2, 3, 4, c=5))
    check("none", lambda: nap.remote(0))
    check("local", lambda: describe.local(1))
    check("missing_argument", lambda: describe.remote())
    check("async_function", lambda: add_later.remote(2, 3))
    check("surroundings", surroundings.remote)
    check("identify", identify.remote)
    check("renamed", original_name.remote)
    check("values", lambda: repr(nap.remote(0, VALUES)) == repr(VALUES))

    async def concurrent():
        return await asyncio.gather(*[describe.remote.aio(n) for n in range(5)])

    check("remote_aio", concurrent)

    base = 10

    # Closures have no importable name: only a serialized function can carry one.
    serialized_app = modal.App("conformance-serialized")

    @serialized_app.function(serialized=True)
    def add_base(x):
        return x + base

    def run_serialized():
        with serialized_app.run():
            return add_base.remote(5)

    check("serialized", run_serialized)


VALUES = [None, True, 3, 2**80, 1.5, "ß", b"\x00\xff", (1, (2, 3)), {"k": [1]}, {1, 2}, range(3)]


def spawned_calls(check):
    call = check_spawn(check)
    if call is not None:
        check("get_again", call.get)
        check("from_id", lambda: modal.FunctionCall.from_id(call.object_id).get(timeout=20))
        check("call_graph", lambda: len(call.get_call_graph()))

    slow = nap.spawn(4, "late")
    check("get_timeout_zero", lambda: slow.get(timeout=0))
    check("get_timeout", lambda: slow.get(timeout=0.5))
    check("get_after_timeout", lambda: slow.get(timeout=40))

    def gather():
        return modal.FunctionCall.gather(describe.spawn(1), describe.spawn(2))

    check("gather", lambda: [found["a"] for found in gather()])

    async def spawn_aio():
        return await (await add_later.spawn.aio(1, 2)).get.aio(timeout=30)

    check("spawn_aio", spawn_aio)
    check("cancel_running", lambda: cancelled(nap))
    check("cancel_running_async", lambda: cancelled(nap_async))
    check("call_after_cancel", lambda: nap.remote(0, "still here"))
    check("cancel_queued", cancel_queued)
    check("cancel_terminate", cancel_and_terminate)


def check_spawn(check):
    holder = []

    def spawn():
        call = describe.spawn(1, c=9)
        holder.append(call)
        return {"id": call.object_id, "value": call.get(timeout=40)}

    check("spawn", spawn)
    return holder[0] if holder else None


def cancelled(function):
    call = function.spawn(120)
    time.sleep(2.5)
    call.cancel()
    return call.get(timeout=30)


def cancel_queued():
    first = narrow.spawn(5)
    second = narrow.spawn(0.25)
    third = narrow.spawn(0.5)
    time.sleep(0.5)
    second.cancel()
    try:
        second.get(timeout=10)
        ended = "returned"
    except TimeoutError:
        ended = "timeout"
    except Exception as error:
        ended = type(error).__name__
    return {"second": ended, "first": first.get(timeout=30), "third": third.get(timeout=30)}


def cancel_and_terminate():
    call = nap.spawn(120)
    time.sleep(2.5)
    call.cancel(terminate_containers=True)
    return call.get(timeout=30)


def payloads(check):
    def digest_of(size):
        blob = os.urandom(size)
        given = [len(blob), hashlib.sha256(blob).hexdigest()]
        return given == digest.remote(blob)

    for label, size in (("small", 1000), ("async_limit", 9000), ("inline_limit", 2 * MEBI)):
        check(f"argument_{label}", lambda size=size: digest_of(size))
    check("argument_5mb", lambda: digest_of(5 * MEBI))
    check("argument_50mb", lambda: digest_of(50 * MEBI), timeout=120)
    check("spawn_9kb", lambda: digest.spawn(bytes(9000)).get(timeout=40)[0])
    check("spawn_result_9kb", lambda: len(nap.spawn(0, bytes(9000)).get(timeout=40)))
    check("spawn_5mb", lambda: digest.spawn(bytes(5 * MEBI)).get(timeout=40)[0])
    check("result_3mb", lambda: len(make.remote(3 * MEBI)))
    check("result_50mb", lambda: hash_of(make.remote(50 * MEBI)), timeout=120)


def hash_of(blob):
    return [len(blob), hashlib.sha256(blob).hexdigest()]
