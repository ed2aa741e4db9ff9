"""Sandboxes under a server or a node that is killed; who kills writes the file ``killed`` then."""

import os
import sys

import modal
from reporting import Report, raised, until

NAME = "conformance-sandbox-recovery"


def main(part):
    app = modal.App.lookup(NAME, create_if_missing=True)
    image = modal.Image.debian_slim()
    script = "while read line; do echo got $line; done; exit 9"
    # a program that is alone in what it is told, and one that says how it ended
    sandbox = modal.Sandbox.create("sh", "-c", script, app=app, image=image, name=f"named-{part}")
    sandbox.stdin.write(b"before\n")
    sandbox.stdin.drain()
    ended = modal.Sandbox.create("sh", "-c", "echo over; exit 4", app=app, image=image)
    ended.wait()
    doomed = modal.Sandbox.create("sleep", "1000", app=app, image=image)
    next(iter(sandbox.stdout))
    print("two sandboxes run", flush=True)
    until(lambda: os.path.exists("killed"), 60.0, 0.05)
    report = Report()

    def survived():
        found = modal.Sandbox.from_name(NAME, f"named-{part}")
        sandbox.stdin.write(b"after\n")
        sandbox.stdin.write_eof()
        sandbox.stdin.drain()
        sandbox.wait()
        same = found.object_id == sandbox.object_id
        return [same, sandbox.returncode, sandbox.stdout.read()]

    def lost():
        sandbox.wait(raise_on_termination=False)
        return [sandbox.returncode, raised(lambda: modal.Sandbox.from_name(NAME, f"named-{part}"))]

    def terminated():
        doomed.terminate()
        doomed.wait(raise_on_termination=False)
        return doomed.returncode

    def new():
        again = modal.Sandbox.create("echo", "new", app=app, image=image)
        again.wait()
        return [again.returncode, again.stdout.read()]

    report.check("survived" if part == "server" else "lost", survived if part == "server" else lost)
    report.check("terminated", terminated)
    report.check("ended", lambda: [modal.Sandbox.from_id(ended.object_id).poll()])
    report.check("new", new)


if __name__ == "__main__":
    main(sys.argv[1])
