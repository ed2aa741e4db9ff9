"""Calls made from inside containers, and handles that travel as arguments and results."""

import time

import modal

app = modal.App("conformance-nested")


@app.function()
def double(x):
    return 2 * x


@app.function()
def fail(x):
    raise LookupError(f"nothing under {x}")


@app.function()
def letters(n):
    yield from "abcdefgh"[:n]


@app.function()
def call_function(x):
    return double.remote(x) + 1


@app.function()
def call_map(n):
    return list(double.map(range(n)))


@app.function()
def call_starmap(n):
    return list(double.starmap([(i,) for i in range(n)]))


@app.function()
def call_generator(n):
    return "".join(letters.remote_gen(n))


@app.function()
async def call_async(x):
    return await double.remote.aio(x)


@app.function()
def call_failing(x):
    return fail.remote(x)


@app.function()
def catch_failing(x):
    try:
        fail.remote(x)
    except LookupError as error:
        return str(error)


@app.function()
def factorial(n):
    return 1 if n <= 1 else n * factorial.remote(n - 1)


@app.function()
def apply(function, x):
    return function.remote(x)


@app.function()
def spawn_inside(x):
    call = double.spawn(x)
    return [call.object_id, call]


class EmptyShelfError(Exception):
    """A type of the program's own, raised in one container and caught in another."""

    def __init__(self, shelf):
        super().__init__(shelf)
        self.shelf = shelf


@app.function()
def take_from(shelf):
    raise EmptyShelfError(shelf)


@app.function()
def catch_own_type(shelf):
    try:
        take_from.remote(shelf)
    except EmptyShelfError as error:
        return error.shelf


@app.function()
def gather_inside():
    return modal.FunctionCall.gather(double.spawn(1), double.spawn(2))


@app.function()
def cancel_inside():
    call = hold.spawn(120)
    time.sleep(1)
    call.cancel()
    try:
        call.get(timeout=30)
    except TimeoutError:
        return "goes on"
    except Exception as error:
        return type(error).__name__


@app.function(max_containers=1)
def hold(seconds):
    time.sleep(seconds)
    return seconds


@app.function()
def wait_for_hold(seconds):
    return hold.remote(seconds)


@app.function()
def blob_through(size):
    return len(echo.remote(bytes(size)))


@app.function()
def echo(x):
    return x


@app.function()
def lookup(name, x):
    return modal.Function.from_name(name, "nothing").remote(x)


@app.cls()
class Helper:
    factor: int = modal.parameter(default=3)

    @modal.method()
    def scale(self, x):
        return self.factor * x

    @modal.method()
    def through_function(self, x):
        return double.remote(x) + self.factor

    @modal.method()
    def through_method(self, x):
        return self.scale.remote(x) + 1

    @modal.method()
    def through_local(self, x):
        return self.scale.local(x) + 2


@app.function()
def call_class(x):
    return [Helper().scale.remote(x), Helper(factor=10).scale.remote(x)]


@app.local_entrypoint()
def main():
    from reporting import Report

    check = Report().check
    check("function", lambda: call_function.remote(5))
    check("map", lambda: call_map.remote(12))
    check("starmap", lambda: call_starmap.remote(4))
    check("generator", lambda: call_generator.remote(4))
    check("async", lambda: call_async.remote(4))
    check("class", lambda: call_class.remote(2))
    check("method_to_function", lambda: Helper().through_function.remote(4))
    check("method_to_method", lambda: Helper(factor=5).through_method.remote(4))
    check("method_local", lambda: Helper(factor=5).through_local.remote(4))
    check("recursion", lambda: factorial.remote(5), timeout=90)

    def recursion_in_a_warm_container():
        # By now inputs of this function are known to be quick: the inner ones must not be left to
        # the container whose input waits for them.
        quick = [factorial.remote(1) for _ in range(5)]
        return [*quick, factorial.remote(4)]

    check("recursion_warm", recursion_in_a_warm_container, timeout=90)
    check("failing", lambda: call_failing.remote("x"))
    check("caught", lambda: catch_failing.remote("y"))
    check("own_type", lambda: catch_own_type.remote("top"))
    check("gather", gather_inside.remote)
    check("cancel", cancel_inside.remote)

    def cancelled_caller():
        caller = wait_for_hold.spawn(600)
        time.sleep(5)
        caller.cancel()
        # The one container of ``hold`` is free again.
        return hold.remote(0)

    check("cancelled_caller", cancelled_caller)
    check("handle_argument", lambda: apply.remote(double, 8))
    check("map_of_calls", lambda: list(call_function.map(range(6))))
    check("blob", lambda: blob_through.remote(5 * 1024 * 1024))
    check("unknown_app", lambda: lookup.remote("no-such-app-anywhere", 1))

    def spawned():
        object_id, call = spawn_inside.remote(21)
        return [modal.FunctionCall.from_id(object_id).get(timeout=30), call.get(timeout=30)]

    check("spawned_inside", spawned)
