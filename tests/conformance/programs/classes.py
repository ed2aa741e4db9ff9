"""Classes: state, parameters, life-cycle hooks, several methods, options."""

import os
import threading

import modal

app = modal.App("conformance-classes")


@app.cls(max_containers=1)
class Counter:
    @modal.enter()
    def start(self):
        self.total = 100
        self.hooks = ["enter"]

    @modal.enter()
    async def start_more(self):
        self.hooks.append("async enter")

    @modal.method()
    def add(self, n=1):
        self.total += n
        return self.total

    @modal.method()
    async def read(self):
        return [self.total, self.hooks, os.getpid()]

    @modal.method()
    def failing(self):
        raise KeyError("from a method")


@app.cls()
class Plain:
    label = "class attribute"

    @modal.method()
    def get(self):
        return self.label

    @modal.method()
    def echo(self, x):
        return x


class Base:
    @modal.method()
    def inherited(self):
        return f"inherited by {type(self).__name__}"


@app.cls()
class Child(Base):
    @modal.method()
    def own(self):
        return "own"


@app.cls()
class Model:
    name: str = modal.parameter()
    size: int = modal.parameter(default=3)

    @modal.enter()
    def load(self):
        self.loaded = f"{self.name}:{self.size}"

    @modal.method()
    def describe(self):
        return [self.loaded, os.environ["MODAL_TASK_ID"]]

    @modal.method()
    def repeat(self, x):
        return x * self.size


@app.cls()
class Typed:
    flag: bool = modal.parameter(default=False)
    blob: bytes = modal.parameter(default=b"\x00")

    @modal.method()
    def get(self):
        return [self.flag, list(self.blob)]


@app.cls()
class Leaving:
    @modal.method()
    def work(self):
        return "worked"

    @modal.exit()
    def leave(self):
        print("left properly", flush=True)


@app.cls(max_containers=1)
class Options:
    @modal.enter()
    def prepare(self):
        self.active = 0
        self.lock = threading.Lock()

    @modal.method()
    def variable(self):
        return os.environ.get("OPTION_GIVEN")

    @modal.method()
    def meet(self, n):
        # True only when n inputs are really inside this container at once.
        if not hasattr(self, "barrier"):
            with self.lock:
                if not hasattr(self, "barrier"):
                    self.barrier = threading.Barrier(n)
        self.barrier.wait(timeout=30)
        return True


@app.cls(max_containers=1)
class Batchable:
    @modal.batched(max_batch_size=2, wait_ms=50)
    def sizes(self, xs):
        return [len(xs)] * len(xs)


@app.local_entrypoint()
def main():
    from reporting import Report

    check = Report().check
    check("state", lambda: [Counter().add.remote(), Counter().add.remote(5)])
    check("hooks", lambda: Counter().read.remote()[:2])
    check("method_error", lambda: Counter().failing.remote())
    check("after_error", lambda: Counter().add.remote(0))
    check("attribute", lambda: Plain().get.remote())
    check("method_map", lambda: list(Plain().echo.map(range(10))))
    check("method_spawn", lambda: Plain().echo.spawn("x").get(timeout=30))
    check("inheritance", lambda: [Child().inherited.remote(), Child().own.remote()])
    check("parameters", lambda: Model(name="small").describe.remote()[0])
    check("parameters_all", lambda: Model(name="large", size=7).repeat.remote("ab"))
    check("typed", lambda: Typed(flag=True, blob=b"\x01\x02").get.remote())

    def pools():
        first = Model(name="a").describe.remote()[1]
        again = Model(name="a").describe.remote()[1]
        other = Model(name="b").describe.remote()[1]
        return [first == again, first == other]

    check("parameter_pools", pools)
    check("missing_parameter", lambda: Model().describe.remote())
    check("unknown_parameter", lambda: Model(name="x", colour="red").describe.remote())

    check("exit_hook", Leaving().work.remote)
    options(check)


def options(check):
    secret = modal.Secret.from_dict({"OPTION_GIVEN": "by with_options"})
    check("options_none", lambda: Options().variable.remote())
    check("options_secret", lambda: Options.with_options(secrets=[secret])().variable.remote())

    def together():
        variant = Options.with_concurrency(max_inputs=4)()
        return list(variant.meet.map([4] * 4))

    check("options_concurrency", together)

    def batches():
        variant = Batchable.with_batching(max_batch_size=5, wait_ms=1500)()
        return list(variant.sizes.map(range(5)))

    check("options_batching", batches)

    def timeout():
        return Options.with_options(timeout=2)().meet.remote(9)

    check("options_timeout", timeout)
