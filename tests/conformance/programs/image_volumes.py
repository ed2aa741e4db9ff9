"""Volumes in the steps of an image: read, written and committed by RUN and by functions."""

import os
import sys
from pathlib import Path

import modal

VERSION = tuple(int(part) for part in modal.__version__.split(".")[:2])
SUFFIX = modal.__version__.replace(".", "-")
BASE = modal.Image.from_registry("python:3.11-slim-bookworm")
models = modal.Volume.from_name(f"models-{SUFFIX}", create_if_missing=True)
app = modal.App(f"conformance-image-volumes-{SUFFIX}")


def download():
    Path("/models/by-function.txt").write_text("weights")
    Path("/marked").write_text("function")


by_function = BASE.run_function(download, volumes={"/models": models})
image = by_function
if VERSION >= (1, 2):
    image = by_function.run_commands(
        "cp /data/models/by-function.txt /srv/",
        "echo from a command > /data/models/by-command.txt",
        volumes={"/data/models": models},
    )


@app.function(image=image)
def look():
    paths = ["/models", "/data", "/data/models", "/srv/by-function.txt", "/marked"]
    return [path for path in paths if os.path.lexists(path)]


def stored():
    return {
        entry.path: b"".join(models.read_file(entry.path)).decode().strip()
        for entry in models.listdir("/")
    }


@app.local_entrypoint()
def main():
    sys.path.insert(0, str(Path(__file__).parent))
    from reporting import Report

    check = Report().check
    check("stored", stored)
    check("look", look.remote, 200)
    check("failing", failing, 200)
    check("stored_by_failing", lambda: stored().get("before-failure.txt"))


def failing():
    if VERSION < (1, 2):
        return
    broken = BASE.run_commands(
        "echo kept > /data/before-failure.txt; exit 3", volumes={"/data": models}
    )
    broken.build(app)
