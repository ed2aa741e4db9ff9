"""``modal shell`` and ``modal container logs``: what a person at a terminal does with containers."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from datetime import UTC, datetime, timedelta

import modal

if modal.is_local():
    from reporting import Report

RELEASE = tuple(int(part) for part in modal.__version__.split(".")[:3])
# Before there was that word, there was no pseudo-terminal where there was no terminal.
NO_PTY = ["--no-pty"] if RELEASE >= (1, 4) else []
NAME = f"conformance-shells-{modal.__version__}".replace(".", "-")
app = modal.App(NAME)
image = modal.Image.debian_slim().env({"SPECIAL": "of the function"})
secret = modal.Secret.from_dict({"HIDDEN": "secret"})


@app.function(image=image, secrets=[secret])
def special():
    pass


@app.function(image=modal.Image.debian_slim(), timeout=600)
def hold(queue):
    queue.put(os.environ["MODAL_TASK_ID"])
    time.sleep(500)


@app.cls(image=image)
class Held:
    @modal.method()
    def method(self):
        pass


def cli(*words, send=None):
    """Exit code and output of a command without a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "modal", *words],
        input=send,
        stdin=subprocess.DEVNULL if send is None else None,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return [done.returncode, done.stdout, done.stderr]


def printed(*words):
    """What the command in the container printed, among what the CLI says."""
    code, out, err = cli(*words)
    assert code == 0, out + err
    return re.findall(r"<(.*?)>", out)


def at_terminal(words, steps, rows=31, columns=97):
    """A command on a terminal: each step is (what to wait for, what to type then)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "modal", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    seen, place = b"", 0
    steps = list(steps)
    deadline = time.monotonic() + 100
    try:
        while time.monotonic() < deadline:
            if steps and (found := seen.find(steps[0][0].encode(), place)) >= 0:
                mark, typed = steps.pop(0)
                place = found + len(mark)
                os.write(ours, typed.encode())
                continue
            ready = select.select([ours], [], [], 0.5)[0]
            if not ready and process.poll() is not None:
                break
            if ready:
                try:
                    data = os.read(ours, 65536)
                except OSError:  # the last one on the terminal has left
                    break
                seen += data
        code = process.wait(max(1.0, deadline - time.monotonic()))
    finally:
        process.kill()
        os.close(ours)
    assert not steps, (steps, seen)
    return [code, seen.decode(errors="replace")]


def plain():
    """A new container with the client's default image."""
    return printed("shell", "-c", "echo '<'$((6 * 7))'>'; echo '<'$MODAL_TOKEN_ID'>'")


def options():
    """A volume, a secret, a local file, processors and memory."""
    volume = modal.Volume.from_name(f"{NAME}-volume", create_if_missing=True)
    volume.hydrate()
    words = ["shell", "--volume", f"{NAME}-volume", "--secret", f"{NAME}-secret"]
    words += ["--cpu", "1", "--memory", "512"]
    script = f"echo '<'$WORD'>'; echo kept > /mnt/{NAME}-volume/f; echo '<'$(id -u)'>'"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "given.txt")
        with open(path, "w") as file:
            file.write("from here")
        if RELEASE >= (1, 2):
            words += ["--add-local", path]
            script += "; echo '<'$(cat /mnt/given.txt)'>'"
        found = printed(*words, "-c", script)
    return [found, b"".join(volume.read_file("f")).decode()]


def of_a_function():
    return printed("shell", f"{__file__}::special", "-c", "echo '<'$SPECIAL, $HIDDEN'>'")


def of_a_method():
    return printed("shell", f"{__file__}::Held.method", "-c", "echo '<'$SPECIAL'>'")


def of_an_image():
    own = modal.App.lookup(NAME + "-image", create_if_missing=True)
    built = image.build(own) if hasattr(image, "build") else image
    return printed("shell", built.object_id, "-c", "echo '<'$SPECIAL'>'")


def of_a_registry():
    return printed("shell", "--image", "python:3.11-slim", "-c", "echo '<'$(which python)'>'")


def of_a_sandbox():
    """One that runs; what is printed there, and what is said of one that is gone."""
    own = modal.App.lookup(NAME + "-sandbox", create_if_missing=True)
    box = modal.Sandbox.create("sleep", "600", app=own, image=image)
    box.exec("sh", "-c", "echo here > /mark").wait()
    found = printed("shell", *NO_PTY, box.object_id, "-c", 'sh -c \'echo "<"$(cat /mark)">"\'')
    other = ["shell", *NO_PTY, box.object_id, "--cpu", "1"]
    refused = cli(*other)
    box.terminate()
    box.wait(raise_on_termination=False)
    gone = cli("shell", *NO_PTY, box.object_id, "-c", "true")
    unknown = cli("shell", *NO_PTY, box.object_id[:-4] + "0000", "-c", "true")
    ends = [refused[0], gone[0], unknown[0]]
    return [found, ends, [each[1] + each[2] for each in (refused, gone, unknown)]]


def of_a_sidecar():
    own = modal.App.lookup(NAME + "-sidecar", create_if_missing=True)
    box = modal.Sandbox.create("sleep", "600", app=own, image=image)
    box._experimental_sidecars.create("sleep", "600", name="beside", image=image)
    found = printed(
        "shell", *NO_PTY, f"{box.object_id}:beside", "-c", 'sh -c \'echo "<"$SPECIAL">"\''
    )
    none = cli("shell", *NO_PTY, f"{box.object_id}:none", "-c", "true")
    box.terminate()
    return [found, none[0], none[1] + none[2]]


def of_a_container(queue):
    call = hold.spawn(queue)
    task_id = queue.get(timeout=60)
    words = ["shell", *NO_PTY, task_id, "-c", 'sh -c \'echo "<"$MODAL_TASK_ID">"\'']
    found = printed(*words)
    call.cancel()
    return found == [task_id]


def interactive():
    """bash on a terminal of the user's size, with Ctrl-C to what runs, and its end."""
    steps = [
        ("# ", "echo $((40 + 2)); stty size\n"),
        ("42", ""),
        ("31 97", ""),
        ("# ", "sh -c 'echo $((500 + 55)); exec sleep 1000'; echo never\n"),
        ("555", "\x03"),  # it runs
        ("# ", "echo over; exit\n"),
        ("over", ""),
    ]
    code, text = at_terminal(["shell"], steps)
    return [code, text.count("never")]


def attached():
    """A terminal in a sandbox that runs already."""
    own = modal.App.lookup(NAME + "-attached", create_if_missing=True)
    box = modal.Sandbox.create("sleep", "600", app=own, image=image)
    steps = [("# ", "echo $((40 + 2)); tty\n"), ("42", ""), ("/dev/pts/", "exit\n")]
    words = ["shell", box.object_id]
    if RELEASE < (1, 2):
        words = ["container", "exec", box._get_task_id(), "/bin/bash"]
    code, _ = at_terminal(words, steps)
    box.terminate()
    return code


def logs():
    """What a sandbox printed, by the command and by the client's own methods."""
    own = modal.App.lookup(NAME + "-logs", create_if_missing=True)
    since = datetime.now(UTC) - timedelta(hours=1)
    script = "for i in $(seq 1 300); do echo line-$i; done; echo oops >&2"
    box = modal.Sandbox.create("sh", "-c", script, app=own, image=image)
    box.wait()
    code, out, err = cli("container", "logs", box.object_id)
    assert code == 0, out + err
    words = ["container", "logs", box.object_id]
    found = [out.split()[-2:]]
    everything = cli(*words, "--all")[1].split()
    found += [len(everything), everything[0]]
    found.append("line-29" in cli(*words, "--search", "line-29")[1].split())
    found.append(cli(*words, "--search", "nowhere")[1].split())
    found.append(cli(*words, "--source", "stderr")[1].split())
    found.append(cli(*words, "--tail", "1")[1].split()[-1])
    found.append([entry.message.split()[-1] for entry in box.logs.tail(1)])
    found.append(sum(len(entry.message.split()) for entry in box.logs.fetch(since=since)))
    return found


def main():
    report = Report()
    check = report.check
    check("plain", plain, 300.0)
    if RELEASE >= (1, 1):
        modal.Secret.objects.create(f"{NAME}-secret", {"WORD": "secret"}, allow_existing=True)
    else:
        modal.Secret.create_deployed(f"{NAME}-secret", {"WORD": "secret"}, overwrite=True)
    for call in (options, of_a_function, of_a_method, of_a_registry, interactive, attached):
        check(call.__name__, call, 130.0)
    if RELEASE >= (1, 2):
        check("of_an_image", of_an_image, 130.0)
        check("of_a_sandbox", of_a_sandbox, 130.0)
    if RELEASE >= (1, 6, 4):
        check("of_a_sidecar", of_a_sidecar, 130.0)
        check("logs", logs, 130.0)
    with app.run(), modal.Queue.ephemeral() as queue:
        check("of_a_container", lambda: of_a_container(queue), 130.0)


if __name__ == "__main__":
    main()
