"""Sandboxes under gVisor: whose kernel it is, and what goes through its keeper."""

import urllib.request

import modal
from reporting import Report, raised

NAME = f"conformance-gvisor-{modal.__version__}".replace(".", "-")

app = None
image = modal.Image.debian_slim()
box = None


def run(*command, **options):
    process = box.exec(*command, **options)
    return [process.stdout.read(), process.wait()]


def files():
    """Written from outside, read inside, and the other way round."""
    box.filesystem.write_text("outside", "/tmp/out")
    seen = run("sh", "-c", "cat /tmp/out; echo inside > /root/in; mv /tmp/out /root/out")
    return [seen, box.filesystem.read_text("/root/in"), box.filesystem.read_text("/root/out")]


def terminal():
    process = box.exec("sh", "-c", "tty; read line; echo got $line", pty=True)
    process.stdin.write(b"words\n")
    process.stdin.drain()
    lines = process.stdout.read().splitlines()
    # the echo of what was typed may be before the first line
    return [[line for line in lines if "/" in line], lines[-1], process.wait()]


def tunnel():
    box.exec("python", "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", "/etc")
    host, port = box.tunnels()[8000].unencrypted_host, box.tunnels()[8000].unencrypted_port
    with urllib.request.urlopen(f"http://{host}:{port}/hostname", timeout=30) as answer:
        return answer.read().decode().strip()


def snapshot():
    kept = box.snapshot_filesystem()
    other = modal.Sandbox.create("cat", "/root/in", app=app, image=kept)
    other.wait()
    return other.stdout.read()


def volume():
    with modal.Volume.ephemeral() as kept:
        one = modal.Sandbox.create("sleep", "60", app=app, image=image, volumes={"/data": kept})
        one.exec("sh", "-c", "echo kept > /data/file; sync /data").wait()
        one.terminate()
        one.wait(raise_on_termination=False)
        return b"".join(kept.read_file("file")).decode()


def main():
    global app, box
    report = Report()
    app = modal.App.lookup(NAME, create_if_missing=True)
    box = report.check(
        "prepare",
        lambda: modal.Sandbox.create(
            "sleep", "900", app=app, image=image, unencrypted_ports=[8000]
        ),
        300.0,
    )
    report.check("kernel", lambda: run("dmesg"))
    report.check("exits", lambda: [run("sh", "-c", s)[1] for s in ("exit 7", "kill -9 $$")])
    report.check("no_program", lambda: raised(lambda: box.exec("no-such-program").wait())[0])
    for call in (files, terminal, tunnel, snapshot, volume):
        report.check(call.__name__, call)
    report.check("end", lambda: [box.terminate(), box.wait(raise_on_termination=False), box.poll()])


if __name__ == "__main__":
    main()
