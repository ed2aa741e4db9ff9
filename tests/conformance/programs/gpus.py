"""GPUs: which a container has, which waits for which, what cannot be had."""

import ctypes
import glob
import itertools
import os
import threading
import time

import modal

app = modal.App("conformance-gpus")
MARK = "/root/baked-on"


def bake():
    with open(MARK, "w") as file:
        file.write(repr(seen()))


image = modal.Image.debian_slim(python_version="3.11").run_function(bake, gpu="T4")


def seen():
    """The GPUs of this container: by their device files, by the variable; and the driver's library."""
    devices = sorted(name for name in glob.glob("/dev/fakegpu*") if name != "/dev/fakegpuctl")
    for name in devices:
        with open(name, "rb") as file:
            assert file.read(2) == b"\0\0", name
    answer = ctypes.CDLL("libfakegpu.so.1").answer() if devices else 0
    return [
        [name.removeprefix("/dev/fakegpu") for name in devices],
        os.environ.get("NVIDIA_VISIBLE_DEVICES", ""),
        answer,
    ]


@app.function(gpu="T4", image=image)
def one():
    return seen()


@app.function(gpu="T4", image=image)
def baked():
    with open(MARK) as file:
        return file.read()


@app.function(gpu="A100-80GB:2", image=image)
def two():
    return seen()


@app.function(gpu=["H100", "A100:2"], image=image)
def fallback():
    return seen()


@app.function(gpu="any", image=image)
def whichever():
    return seen()


@app.function(gpu="RTX-4090", image=image)
def by_name():
    return seen()


@app.function(image=image)
def without():
    return seen()


@app.function(gpu="T4", image=image, max_containers=3, scaledown_window=900)
def first(seconds):
    began = time.time()
    print("first has the GPU", flush=True)
    time.sleep(seconds)
    return [os.environ["MODAL_TASK_ID"], seen()[0], began, time.time()]


@app.function(gpu="T4", image=image, max_containers=3, scaledown_window=900)
def second(seconds):
    began = time.time()
    time.sleep(seconds)
    return [os.environ["MODAL_TASK_ID"], seen()[0], began, time.time()]


@app.cls(gpu="T4", image=image)
class Model:
    @modal.method()
    def which(self):
        return seen()


def exclusive():
    """Two functions, each on the machine's only T4: never at the same time."""
    calls = [function.spawn(0.5) for function in (first, second, first, second)]
    found = [call.get(timeout=200) for call in calls]
    spans = sorted((began, ended, task) for task, _, began, ended in found)
    overlaps = [
        [earlier, later]
        for earlier, later in itertools.pairwise(spans)
        if later[0] < earlier[1] and later[2] != earlier[2]
    ]
    return [sorted({device for _, devices, _, _ in found for device in devices}), overlaps]


def own_app(**how):
    """An app whose only function asks for this."""
    other = modal.App("conformance-gpus-other")
    other.function(serialized=True, **how)(lambda: 1)
    with other.run():
        return "ran"


def sandboxes():
    """One has the T4, another waits for it; a third needs none and does not wait behind them."""
    script = "ls /dev | grep 'fakegpu[0-9]'; echo $NVIDIA_VISIBLE_DEVICES; "
    holds = modal.Sandbox.create("sh", "-c", script + "cat", gpu="T4", image=image, app=app)
    inside = holds.exec("sh", "-c", script + 'test -n "$LD_LIBRARY_PATH" && echo library')
    executed = inside.stdout.read().split()
    waited = []

    def wait():  # newer clients do so in create
        box = modal.Sandbox.create("sh", "-c", script, gpu="T4", image=image, app=app)
        box.wait()
        waited.extend(box.stdout.read().split())

    waiting = threading.Thread(target=wait)
    waiting.start()
    plain = modal.Sandbox.create("sh", "-c", "ls /dev | grep -c fakegpu", image=image, app=app)
    plain.wait()
    still = waiting.is_alive()
    holds.stdin.write_eof()
    holds.stdin.drain()
    holds.wait()
    waiting.join()
    return {
        "holds": holds.stdout.read().split(),
        "exec": executed,
        "plain": plain.stdout.read().split(),
        "waits": [still, waited],
    }


def sandbox_after_call():
    """It waits for a function's GPU, whose container would idle for a long time."""
    call = first.spawn(3)
    script = "ls /dev | grep 'fakegpu[0-9]'"
    box = modal.Sandbox.create("sh", "-c", script, gpu="T4", image=image, app=app)
    devices = call.get(timeout=200)[1]
    box.wait()
    return [devices, box.stdout.read().split()]


def holding(check):
    """Work on the only T4 while server or node are killed: nobody else may get it meanwhile."""
    running = first.spawn(8)
    other = second.spawn(0.1)
    check("running", lambda: running.get(timeout=200), 210)
    check("other", lambda: other.get(timeout=200), 210)
    check("afterwards", one.remote, 120)


@app.local_entrypoint()
def main(held: bool = False):
    from reporting import Report

    check = Report().check
    if held:
        return holding(check)
    check("one", one.remote, 300)
    check("baked", baked.remote)
    check("two", two.remote)
    check("fallback", fallback.remote)
    check("whichever", whichever.remote)
    check("by_name", by_name.remote)
    check("without", without.remote)
    check("class", lambda: Model().which.remote())
    check("with_options", lambda: Model.with_options(gpu="RTX-4090")().which.remote())
    check("exclusive", exclusive, 240)
    check("unknown", lambda: own_app(gpu="NOSUCHGPU"))
    check("too_many", lambda: own_app(gpu="A100:3"))
    check("unknown_list", lambda: own_app(gpu=["H100", "B200:8"]))
    check("unknown_option", lambda: Model.with_options(gpu="H100")().which.remote())
    check("unknown_sandbox", lambda: modal.Sandbox.create(gpu="H100", image=image, app=app))
    check("unknown_step", lambda: own_app(image=image.run_function(bake, gpu="H100")))
    check("sandboxes", sandboxes, 240)
    check("sandbox_after_call", sandbox_after_call, 240)
