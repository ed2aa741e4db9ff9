"""The same no-op function as an app, deployed to Homeport by the benchmark."""

import os

import modal

CONTAINERS = int(os.environ.get("BENCH_CONTAINERS", "2"))
app = modal.App("benchmark")
image = modal.Image.debian_slim(python_version="3.11")


@app.function(image=image, min_containers=CONTAINERS, max_containers=CONTAINERS)
def noop(x=None):
    return x


@app.function(image=image, scaledown_window=2)
def cold(x=None):
    return x
