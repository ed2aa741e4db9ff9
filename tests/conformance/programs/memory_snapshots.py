"""Memory snapshots of sandboxes: what goes on in a new sandbox as if nothing had happened."""

import os
import sys
import urllib.request

import modal
from reporting import Report, raised, until

RELEASE = tuple(int(part) for part in modal.__version__.split(".")[:3])
HAS_NAMES = RELEASE >= (1, 2)
GENERATION = "v1" if os.environ.get("MODAL_SANDBOX_V2") == "0" else "v2"
NAME = f"conformance-memory-{modal.__version__}-{GENERATION}".replace(".", "-")

# It answers each line with how many there have been, and serves its working directory.
PROGRAM = """
import http.server, sys, threading
class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass
server = http.server.HTTPServer(("0.0.0.0", 8000), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
heard = []
for line in sys.stdin:
    heard.append(line.strip())
    print(len(heard), *heard, flush=True)
print("over", file=sys.stderr)
sys.exit(7)
"""
# Started by exec, it goes on writing.
BESIDE = "i=0; while sleep 0.05; do i=$((i+1)); echo $i > /root/count.new; mv count.new count; done"

app = None
image = modal.Image.debian_slim()


def create(**options):
    return modal.Sandbox.create(
        "python", "-c", PROGRAM, app=app, image=image, workdir="/root", timeout=900, **options
    )


def named(name):
    return {"name": name} if HAS_NAMES else {}


def say(box, word):
    """One line to the program, one line back."""
    box.stdin.write(f"{word}\n".encode())
    box.stdin.drain()
    return next(iter(box.stdout)).strip()


def run(box, *command):
    process = box.exec(*command)
    return [process.stdout.read(), process.wait()]


def count(box):
    return int(run(box, "cat", "/root/count")[0] or 0)


def served(box):
    tunnel = box.tunnels()[8000]
    url = f"http://{tunnel.unencrypted_host}:{tunnel.unencrypted_port}/file"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode().strip()


def original(report):
    """A sandbox with something in memory, in its files and beside its program."""
    box = create(
        **named("original"),
        unencrypted_ports=[8000],
        secrets=[modal.Secret.from_dict({"WORD": "hidden"})],
        _experimental_enable_snapshot=True,
    )
    report.check("before", lambda: [say(box, "one"), run(box, "sh", "-c", "echo kept > file; pwd")])
    report.check("served_before", lambda: served(box))
    box.exec("sh", "-c", BESIDE)
    until(lambda: count(box))
    return box


def restored(box, first, word, at_snapshot):
    """What a restored sandbox has of the first one."""
    grew = count(box)
    until(lambda: count(box) > grew)
    return [
        box.object_id != first.object_id,
        say(box, word),
        run(box, "sh", "-c", "cat file; echo $WORD"),
        served(box),
        count(box) > at_snapshot,
    ]


def much(box):
    """Through a program of a restored sandbox."""
    process = box.exec("sh", "-c", "echo aside >&2; cat")
    process.stdin.write("x" * 1_000_000)
    process.stdin.write_eof()
    process.stdin.drain()
    return [len(process.stdout.read()), process.stderr.read(), process.wait()]


def terminal(box):
    process = box.exec("sh", "-c", "tty; exit 3", pty=True)
    return [process.stdout.read()[:9], process.wait()]


def end(box):
    """Its program ends by itself when its input does."""
    box.stdin.write_eof()
    box.stdin.drain()
    box.wait()
    return [box.returncode, box.stderr.read()]


def plain_sandbox():
    box = create()
    try:
        return raised(box._experimental_snapshot)
    finally:
        box.terminate()


def deleted():
    """A file that is open and has no name any more cannot be saved."""
    box = create(_experimental_enable_snapshot=True)
    run(box, "touch", "gone")
    box.exec("sh", "-c", "exec 3< gone; rm gone; sleep 900")
    until(lambda: run(box, "ls", "gone")[1])
    failure = raised(box._experimental_snapshot)[1]
    box.wait(raise_on_termination=False)
    return [failure, box.returncode]


def with_volume():
    with modal.Volume.ephemeral() as volume:
        return raised(lambda: create(volumes={"/data": volume}, _experimental_enable_snapshot=True))


def refused():
    return raised(lambda: create(_experimental_enable_snapshot=True))


def save(report):
    """One for a program that comes later."""
    box = create(_experimental_enable_snapshot=True)
    said = say(box, "one")
    run(box, "sh", "-c", "echo kept > file")
    report.check("saved", lambda: [said, box._experimental_snapshot().object_id])


def restore(report, snapshot_id):
    """What an earlier program saved; and it can be saved anew."""
    snapshot = modal.SandboxSnapshot.from_id(snapshot_id)
    again = modal.Sandbox._experimental_from_snapshot
    box = again(snapshot)
    report.check("restored", lambda: [say(box, "two"), run(box, "cat", "file")])
    box = again(box._experimental_snapshot(), **named(None))
    report.check("restored_again", lambda: [say(box, "three"), run(box, "cat", "file")])
    box.terminate()


def main():
    global app
    report = Report()
    app = modal.App.lookup(NAME, create_if_missing=True)
    if sys.argv[1:] == ["save"]:
        return save(report)
    if sys.argv[1:2] == ["restore"]:
        return restore(report, sys.argv[2])
    if sys.argv[1:] == ["refused"]:
        report.check("refused", refused, 300.0)  # its image is made first
        return
    first = original(report)
    at_snapshot = count(first)
    snapshot = first._experimental_snapshot()
    report.check(
        "snapshot",
        lambda: [
            snapshot.object_id[:3],
            first.wait(raise_on_termination=False),
            first.returncode,
        ],
    )
    again = modal.Sandbox._experimental_from_snapshot
    second = again(snapshot)
    report.check("second", lambda: restored(second, first, "two", at_snapshot))
    if HAS_NAMES:
        report.check("name", lambda: modal.Sandbox.from_name(NAME, "original").object_id)
        report.check("taken", lambda: raised(lambda: again(snapshot))[0])
    report.check("ids", lambda: [first.object_id, second.object_id])
    third = again(type(snapshot).from_id(snapshot.object_id), **named(None))
    report.check("third", lambda: restored(third, first, "other", at_snapshot))
    report.check("much", lambda: much(third))
    if HAS_NAMES:
        report.check("terminal", lambda: terminal(third))
    fourth = again(third._experimental_snapshot(), **named("fourth"))
    report.check("fourth", lambda: restored(fourth, third, "more", at_snapshot))
    report.check("end", lambda: end(fourth))
    report.check(
        "terminated",
        lambda: [second.terminate(), second.wait(raise_on_termination=False), second.returncode],
    )
    report.check("not_enabled", plain_sandbox)
    report.check("deleted", deleted)
    report.check("with_volume", with_volume)
    report.check(
        "unknown",
        lambda: raised(lambda: again(type(snapshot).from_id("sn-" + "0" * 22)))[0],
    )


if __name__ == "__main__":
    main()
