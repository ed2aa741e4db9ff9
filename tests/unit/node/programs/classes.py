"""A class run by the official entrypoint in the node's tests."""

import contextlib
import os
import sys
import time

import modal

app = modal.App("classes")


@app.cls()
class Counter:
    @modal.enter()
    def up(self):
        print("entered")
        self.n = 0

    @modal.method()
    def add(self, k):
        self.n += k
        return self.n

    @modal.exit()
    def down(self):
        print("exited")


@app.cls()
class Broken:
    @modal.enter()
    def up(self):
        raise RuntimeError("no luck")

    @modal.method()
    def add(self, k):
        return k


@app.cls(enable_memory_snapshot=True)
class Snapped:
    @modal.enter(snap=True)
    def load(self):
        print("loaded")
        self.loaded_by = os.environ["MODAL_TASK_ID"]
        if os.environ.get("FAILS") and os.environ.get("MODAL_ENABLE_SNAP_RESTORE"):
            sys.exit("not in a snapshot")
        if "WAITS" in os.environ and os.environ.get("MODAL_ENABLE_SNAP_RESTORE"):
            while not os.path.exists(os.environ["WAITS"]):
                time.sleep(0.01)
            with contextlib.suppress(Exception):
                modal.Dict.from_name("any").hydrate()

    @modal.enter(snap=False)
    def restore(self):
        self.restored_by = os.environ["MODAL_TASK_ID"]

    @modal.method()
    def add(self, k):
        return os.getpid(), self.loaded_by, self.restored_by
