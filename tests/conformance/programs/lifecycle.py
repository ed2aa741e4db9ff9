"""Functions that take their time, to be interrupted or left running."""

import time

import modal

app = modal.App("conformance-lifecycle")


@app.function()
def long_work(seconds: int = 120):
    print("long work began", flush=True)
    for second in range(seconds):
        time.sleep(1)
        print("second", second, flush=True)
    print("long work ended", flush=True)
    return "done"


@app.function()
async def long_work_async(seconds: int = 120):
    import asyncio

    print("long work began", flush=True)
    await asyncio.sleep(seconds)


@app.function()
def stubborn(seconds: int = 120):
    deadline = time.monotonic() + seconds
    print("long work began", flush=True)
    while time.monotonic() < deadline:
        try:
            time.sleep(1)
        except BaseException as error:
            print("not impressed by", type(error).__name__, flush=True)


@app.cls()
class Tidy:
    @modal.enter()
    def begin(self):
        print("began", flush=True)

    @modal.method()
    def work(self, seconds: int = 120):
        print("long work began", flush=True)
        time.sleep(seconds)

    @modal.exit()
    def end(self):
        time.sleep(0.5)
        print("tidied up", flush=True)


@app.function()
def short_work():
    time.sleep(5)
    print("short work ended", flush=True)


@app.local_entrypoint()
def detached():
    call = short_work.spawn()
    print("spawned", call.object_id, flush=True)


@app.local_entrypoint()
def many():
    list(long_work.map([120] * 4))


if __name__ == "__main__":
    with modal.enable_output(), app.run():
        long_work.remote()
