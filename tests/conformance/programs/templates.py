"""What a container sees of having waited for its task."""

import json
import os
import sys
import time
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
    }


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
