"""Memory snapshots: what runs before one, what after, and what every container has of its own."""

import inspect
import os
import random
import sys
import threading
import time
from pathlib import Path

import modal

app = modal.App("conformance-snapshots")
volume = modal.Volume.from_name("conformance-snapshots", create_if_missing=True)
known = inspect.signature(modal.App.cls).parameters
ONCE = {"single_use_containers": True} if "single_use_containers" in known else {"max_inputs": 1}

if os.environ.get("MODAL_IS_REMOTE"):
    imported_by = os.environ["MODAL_TASK_ID"]


@app.cls(enable_memory_snapshot=True, **ONCE)
class Model:
    name: str = modal.parameter(default="plain")

    @modal.enter(snap=True)
    def load(self):
        print("loading", self.name)
        self.loaded_by = os.environ["MODAL_TASK_ID"]
        self.events = ["loaded"]
        self.thread = threading.Thread(target=time.sleep, args=(3600,), daemon=True)
        self.thread.start()
        Path("/tmp/loaded").write_text(self.name)

    @modal.enter(snap=False)
    def restore(self):
        self.restored_by = os.environ["MODAL_TASK_ID"]
        self.events.append("restored")

    @modal.method()
    def look(self):
        return {
            "task": os.environ["MODAL_TASK_ID"],
            "imported by": imported_by,
            "loaded by": self.loaded_by,
            "restored by": self.restored_by,
            "events": self.events,
            "name": self.name,
            "file": Path("/tmp/loaded").read_text(),
            "thread lives": self.thread.is_alive(),
            "random": random.random(),
            "local": modal.is_local(),
        }


@app.cls(enable_memory_snapshot=True, volumes={"/data": volume}, **ONCE)
class Stored:
    @modal.enter(snap=True)
    def load(self):
        self.loaded_by = os.environ["MODAL_TASK_ID"]

    @modal.method()
    def look(self, word):
        file = Path("/data/word")
        before = file.read_text() if file.exists() else ""
        file.write_text(word)
        volume.commit()
        return {
            "task": os.environ["MODAL_TASK_ID"],
            "loaded by": self.loaded_by,
            "before": before,
        }


@app.cls(enable_memory_snapshot=True, **ONCE)
class Unwilling:
    @modal.enter(snap=True)
    def load(self):
        self.loaded_by = os.environ["MODAL_TASK_ID"]
        if os.environ.get("MODAL_ENABLE_SNAP_RESTORE"):
            print("this program cannot be snapshotted", file=sys.stderr, flush=True)
            os._exit(3)

    @modal.method()
    def look(self):
        return {"task": os.environ["MODAL_TASK_ID"], "loaded by": self.loaded_by}


@app.function(enable_memory_snapshot=True, **ONCE)
def plain():
    return {"task": os.environ["MODAL_TASK_ID"], "loaded by": imported_by}


def restored(look):
    """What the first container gives that was prepared ahead: that happens behind our back."""
    assert not never, "no container was restored before either"
    deadline = time.monotonic() + 45
    while (found := look())["task"] == found["loaded by"]:
        if time.monotonic() > deadline:
            never.append(found)
            raise AssertionError("no container was restored")
        time.sleep(0.5)  # it is made now, on the same processors
    return found


never = []
"""What the check saw that waited in vain: one is enough."""


@app.local_entrypoint()
def main():
    from reporting import Report

    report = Report()
    check = report.check
    check("first", Model().look.remote)
    check("restored", lambda: restored(Model().look.remote))
    check("restored again", lambda: restored(Model().look.remote))
    check("with a parameter", Model(name="other").look.remote)
    check(
        "restored with a parameter",
        lambda: restored(Model(name="other").look.remote),
    )
    words = iter(range(1000))
    check("stored", lambda: restored(lambda: Stored().look.remote(str(next(words)))))
    check("written last", lambda: next(words) - 1)
    check("stored again", lambda: restored(lambda: Stored().look.remote("end")))
    check("unwilling", lambda: [Unwilling().look.remote() for _ in range(7)])
    check("function", lambda: restored(plain.remote))
