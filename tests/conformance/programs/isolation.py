"""Whose kernel sandboxes have, by what they ask for, where nobody named a runtime."""

import modal
from reporting import Report

NAME = f"conformance-isolation-{modal.__version__}".replace(".", "-")
SERVE = ["python", "-m", "http.server", "8000"]
KERNEL = ["cat", "/proc/version"]

app = None
image = modal.Image.debian_slim()


def create(*command, **options):
    return modal.Sandbox.create(*command, app=app, image=image, timeout=300, **options)


def run(box, *command):
    process = box.exec(*command)
    return process.stdout.read().strip(), process.wait()


def plain():
    box = create(*KERNEL)
    box.wait()
    return box.stdout.read().strip()


def with_gpu():
    """It, and a sidecar that asked for none; they find each other by their names."""
    box = create("sleep", "300", gpu="T4")
    side = box._experimental_sidecars.create(*SERVE, name="side", image=image)
    box.exec(*SERVE)
    found = [run(box, *KERNEL)[0], run(side, *KERNEL)[0]]
    found.append(run(box, "ls", "/dev/fakegpu0"))
    for one, other in ((box, "side"), (side, "main")):
        ask = f"import urllib.request as r; print(r.urlopen('http://{other}:8000').status)"
        script = f'for i in $(seq 300); do python -c "{ask}" 2>/dev/null && break; sleep 0.1; done'
        found.append(run(one, "sh", "-c", script)[0])
    box.terminate()
    return found


def with_memory_snapshots():
    box = create("sleep", "300", _experimental_enable_snapshot=True)
    kernel = run(box, *KERNEL)[0]
    again = modal.Sandbox._experimental_from_snapshot(box._experimental_snapshot())
    found = [kernel, run(again, *KERNEL)[0]]
    again.terminate()
    return found


def main():
    global app
    report = Report()
    app = modal.App.lookup(NAME, create_if_missing=True)
    report.check("plain", plain, 300.0)
    report.check("with_gpu", with_gpu, 240.0)
    report.check("with_memory_snapshots", with_memory_snapshots)


if __name__ == "__main__":
    main()
