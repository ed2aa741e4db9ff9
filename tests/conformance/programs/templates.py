"""What a container sees of having waited for its task."""

import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

import modal

EDITION = 1
app = modal.App("conformance-templates")
volume = modal.Volume.from_name("conformance-templates", create_if_missing=True)


def seen():
    main = sys.modules["__main__"]
    return {
        "waited": Path("/__modal/run/template.py").exists(),
        "task": os.environ["MODAL_TASK_ID"],
        "environment": os.environ["MODAL_ENVIRONMENT"],
        "secret": os.environ.get("WORD"),
        "argv": [Path(word).name for word in sys.argv],
        "main": main.__spec__.name,
        "stdin": os.readlink("/proc/self/fd/0"),
        "parent": os.getppid(),
        "local": modal.is_local(),
        "old file": os.path.exists("/tmp/mine"),
        "edition": EDITION,
        "directory": os.getcwd(),
        "path": sys.path,
        "host": socket.gethostname(),
        "user": os.getresuid(),
        "umask": umask(),
        "limits": limits(),
        "resource limits": [resource.getrlimit(which) for which in range(16)],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signals": {number: str(signal.getsignal(number)) for number in HANDLED},
        "descriptors": descriptors(),
        "forked": forked(),
        "made up": [random.random(), hash("word"), str(uuid.uuid4())],
    }


HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)


def umask():
    before = os.umask(0o22)
    os.umask(before)
    return before


def limits():
    """What its control group allows it, if it sees that."""
    found = {}
    for name in ("memory.max", "cpu.max", "pids.max"):
        file = Path("/sys/fs/cgroup", name)
        found[name] = file.read_text().strip() if file.exists() else ""
    return found


def descriptors():
    """Of what kind its open files are."""
    names = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(name).partition("[")[0] for name in names if os.path.exists(name))


def forked():
    """What a child says that is a copy of this process."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(sum, ([1, 2, 3],))


@app.function(secrets=[modal.Secret.from_dict({"WORD": "sesame"})])
def look():
    print("printed by", os.environ["MODAL_TASK_ID"])
    found = seen()
    Path("/tmp/mine").write_text("left by an earlier task")
    return found


@app.function(volumes={"/data": volume})
def stored(word):
    """What the volume has; then it has ``word``."""
    found = seen()
    file = Path("/data/word")
    before = file.read_text() if file.exists() else ""
    file.write_text(word)
    volume.commit()
    return {**found, "before": before}


@app.cls()
class Entered:
    @modal.enter()
    def enter(self):
        self.found = seen()

    @modal.method()
    def look(self):
        return self.found


@app.function(timeout=3)
def slow():
    time.sleep(60)


@app.local_entrypoint()
def main(which: str = "look", word: str = ""):
    if which == "look":
        found = look.remote()
    elif which == "stored":
        found = stored.remote(word)
    elif which == "class":
        found = Entered().look.remote()
    else:
        try:
            slow.remote()
            found = {}
        except modal.exception.FunctionTimeoutError as error:
            found = {"error": type(error).__name__}
    print("SEEN " + json.dumps(found))
