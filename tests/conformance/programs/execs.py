"""Programs in containers: exec in sandboxes, their streams, ends and terminals, their files."""

import hashlib
import inspect
import os
import subprocess
import sys
import threading
import time

import modal
import modal.exception

if modal.is_local():
    from reporting import Report, until

RELEASE = tuple(int(part) for part in modal.__version__.split(".")[:3])
NAME = f"conformance-execs-{modal.__version__}".replace(".", "-")
MEBI = 1024 * 1024
OPTIONS = inspect.signature(modal.Sandbox.exec).parameters
app = modal.App(NAME)
image = modal.Image.debian_slim()
sandbox = None
plain = None


@app.function(image=image, timeout=600)
def hold(queue):
    queue.put(os.environ["MODAL_TASK_ID"])
    time.sleep(500)


@app.function(image=image, timeout=120)
def from_inside(name):
    """A container of a function that uses a sandbox."""
    own = modal.App.lookup(name, create_if_missing=True)
    made = modal.Sandbox.create("sleep", "100", app=own, image=modal.Image.debian_slim())
    process = made.exec("sh", "-c", "read line; echo got $line; exit 3")
    process.stdin.write("this\n")
    process.stdin.write_eof()
    process.stdin.drain()
    found = [process.stdout.read(), process.wait()]
    if hasattr(made, "filesystem"):
        made.filesystem.write_text("text", "/tmp/x")
        found.append(made.filesystem.read_text("/tmp/x"))
    made.terminate()
    return found


def create(*command, **options):
    return modal.Sandbox.create(*command, app=app, image=image, **options)


def run(*command, **options):
    """Return code and output of a program."""
    process = sandbox.exec(*command, **options)
    return [process.wait(), process.stdout.read(), process.stderr.read()]


def sh(script, **options):
    return run("sh", "-c", script, **options)


def raised(call):
    """The kind of error that ``call`` gives, and its text."""
    try:
        return ["nothing", repr(call())]
    except Exception as error:
        return [type(error).__name__, str(error)]


# --- programs -------------------------------------------------------------------------------------


def output():
    return sh("echo out; echo err >&2; exit 3")


def poll():
    process = sandbox.exec("sh", "-c", "read line; exit 9")
    first = process.poll()
    process.stdin.write_eof()
    process.stdin.drain()
    return [first, process.wait(), process.poll()]


def signalled():
    return sh("kill -9 $$")[0]


def missing_program():
    return raised(lambda: run("no-such-program"))


def secrets():
    named = modal.Secret.from_dict({"ONE": "1", "BOTH": "first"})
    other = modal.Secret.from_dict({"BOTH": "second"})
    return sh("echo $ONE $BOTH", secrets=[named, other])[1]


def env():
    return sh("echo $MINE", env={"MINE": "two words"})[1]


def workdir():
    return [sh("pwd", workdir="/tmp")[1], raised(lambda: sh("pwd", workdir="/nowhere"))[0]]


def no_shell_words():
    return run("printf", "%s|", "a b", "", "*", "ü")[1]


def binary():
    process = sandbox.exec("head", "-c", "1000", "/dev/urandom", text=False)
    data = process.stdout.read()
    return [type(data).__name__, len(data)]


def by_line():
    process = sandbox.exec("sh", "-c", "printf 'a\\nb'; sleep 0.2; printf 'c\\nd'", bufsize=1)
    return list(process.stdout)


def unread():
    """A program is not held up by output that nobody reads, and nothing of it is lost."""
    process = sandbox.exec("sh", "-c", f"yes 0123456 | head -c {8 * MEBI}; echo end >&2")
    code = process.wait()
    text = process.stdout.read()
    return [code, len(text), text == "0123456\n" * MEBI, process.stderr.read()]


def both_ways():
    """Line by line through a program's input and output."""
    process = sandbox.exec("cat", bufsize=1)
    seen = []
    lines = iter(process.stdout)
    for number in range(50):
        process.stdin.write(f"line {number}\n")
        process.stdin.drain()
        seen.append(next(lines))
    process.stdin.write_eof()
    process.stdin.drain()
    return [seen == [f"line {n}\n" for n in range(50)], process.wait()]


def large_input():
    data = os.urandom(6 * MEBI)
    process = sandbox.exec("sha256sum")
    for start in range(0, len(data), MEBI):
        process.stdin.write(data[start : start + MEBI])
        process.stdin.drain()
    process.stdin.write_eof()
    process.stdin.drain()
    return [process.stdout.read().split()[0] == hashlib.sha256(data).hexdigest(), process.wait()]


def timed_out():
    process = sandbox.exec("sleep", "100", timeout=1)
    code = process.wait()
    alive = sh("ps ax 2>/dev/null | grep -c '[s]leep 100' || true")[1].strip()
    return [code in (-1, 137, 124), alive in ("0", "")]


def background():
    """What a program leaves behind holds up neither its end nor its output."""
    process = sandbox.exec("sh", "-c", "sleep 300 & echo started")
    return [process.wait(), process.stdout.read()]


def at_once():
    processes = [sandbox.exec("sh", "-c", f"echo {n}; exit {n}") for n in range(20)]
    return [[process.stdout.read(), process.wait()] for process in processes] == [
        [f"{n}\n", n] for n in range(20)
    ]


def devnull():
    process = sandbox.exec(
        "sh", "-c", "echo gone; exit 6", stdout=modal.stream_type.StreamType.DEVNULL
    )
    return process.wait()


def terminal():
    script = "tty; stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2 && echo all"
    process = sandbox.exec("sh", "-c", script, pty=True)
    return [process.stdout.read().split(), process.wait()]


def terminal_input():
    process = sandbox.exec("cat", pty=True)
    process.stdin.write("typed\n")
    process.stdin.write_eof()
    process.stdin.drain()
    return [process.stdout.read().replace("\r", ""), process.wait()]


def limits():
    """A program started later has the rights and the limits of the container, no others."""
    status = sh("grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; id -u")[1]
    own = plain.stdout.read()
    return [status == own, status]


def ended():
    """Programs of a sandbox that has ended."""
    other = create("sleep", "100")
    process = other.exec("sleep", "100")
    other.terminate()
    code = process.wait()
    until(lambda: other.poll() is not None)
    return [code, raised(lambda: other.exec("true"))[0]]


# --- files ----------------------------------------------------------------------------------------


def files():
    tools = sandbox.filesystem
    tools.write_text("häl\nlo", "/made/for/it.txt")
    text = tools.read_text("/made/for/it.txt")
    tools.write_bytes(b"\0\1", "/made/for/it.txt")
    return [text, list(tools.read_bytes("/made/for/it.txt"))]


def large_file():
    data = os.urandom(20 * MEBI)
    sandbox.filesystem.write_bytes(data, "/tmp/large")
    seen = sh("sha256sum /tmp/large")[1].split()[0]
    return [
        seen == hashlib.sha256(data).hexdigest(),
        sandbox.filesystem.read_bytes("/tmp/large") == data,
    ]


def copies():
    with open("there.bin", "wb") as file:
        file.write(b"x" * 100_000)
    sandbox.filesystem.copy_from_local("there.bin", "/tmp/copy/there.bin")
    sandbox.filesystem.copy_to_local("/tmp/copy/there.bin", "back.bin")
    with open("back.bin", "rb") as file:
        return file.read() == b"x" * 100_000


def listing():
    sh("mkdir -p /listed/inner; echo 12345 > /listed/file; ln -s file /listed/link")
    sh("chmod 640 /listed/file; chown nobody:mail /listed/file")
    found = sandbox.filesystem.list_files("/listed")
    stat = sandbox.filesystem.stat("/listed/link")
    kinds = sorted([item.name, item.path, item.type.value, item.symlink_target] for item in found)
    (file,) = [item for item in found if item.name == "file"]
    return {
        "kinds": kinds,
        "file": [file.size, file.permissions, file.owner, file.group, file.mode],
        "recent": abs(file.modified_time - time.time()) < 600,
        "stat": [stat.type.value, stat.symlink_target],
    }


def directories():
    tools = sandbox.filesystem
    tools.make_directory("/dirs/a/b")
    made = sh("find /dirs | sort")[1].split()
    refused = raised(lambda: tools.remove("/dirs/a"))[0]
    tools.remove("/dirs", recursive=True)
    return [made, refused, raised(lambda: tools.stat("/dirs"))[0]]


def file_errors():
    tools = sandbox.filesystem
    sh("mkdir -p /errors/full/x; echo y > /errors/file")
    cases = {
        "read_missing": lambda: tools.read_text("/errors/none"),
        "read_directory": lambda: tools.read_text("/errors"),
        "read_device": lambda: tools.read_text("/dev/zero"),
        "write_directory": lambda: tools.write_text("", "/errors/full"),
        "write_below_file": lambda: tools.write_text("", "/errors/file/x"),
        "write_proc": lambda: tools.write_text("x", "/proc/sys/kernel/hostname"),
    }
    if RELEASE >= (1, 4, 3):
        cases |= {
            "list_missing": lambda: tools.list_files("/errors/none"),
            "list_file": lambda: tools.list_files("/errors/file"),
            "stat_missing": lambda: tools.stat("/errors/none"),
            "make_existing": lambda: tools.make_directory("/errors/full", create_parents=False),
            "make_orphan": lambda: tools.make_directory("/errors/a/b", create_parents=False),
            "make_below_file": lambda: tools.make_directory("/errors/file/b"),
            "remove_missing": lambda: tools.remove("/errors/none"),
            "remove_full": lambda: tools.remove("/errors/full"),
        }
    return {name: raised(call)[0] for name, call in cases.items()}


def watching():
    seen = []
    sh("mkdir /watched")

    def watch():
        for event in sandbox.filesystem.watch("/watched", recursive=True, timeout=5):
            seen.append([event.type.value, *event.paths])

    thread = threading.Thread(target=watch)
    thread.start()
    time.sleep(2)
    sh(
        "mkdir /watched/in; sleep 0.3; echo x > /watched/in/f; mv /watched/in/f /watched/g; rm /watched/g"
    )
    thread.join(30)
    return [thread.is_alive(), seen]


def files_without_anything():
    """Neither an interpreter nor a shell of the image is needed."""
    other = create("sleep", "100")
    process = other.exec("rm", "-rf", "/bin/sh", "/usr/bin/sh", "/usr/local", "/usr/lib/python3")
    process.wait()
    other.filesystem.write_text("still", "/tmp/there")
    text = other.filesystem.read_text("/tmp/there")
    other.terminate()
    until(lambda: other.poll() is not None)
    return [text, raised(lambda: other.filesystem.read_text("/tmp/there"))[0]]


# --- files of older clients -----------------------------------------------------------------------


def opened():
    with sandbox.open("/tmp/opened", "w") as file:
        file.write("one\ntwo\nthree\n")
        file.flush()
    with sandbox.open("/tmp/opened", "r") as file:
        first = file.readline()
        rest = file.read()
        file.seek(4)
        some = file.read(3)
    with sandbox.open("/tmp/opened", "ab") as file:
        file.write(b"\xff")
    with sandbox.open("/tmp/opened", "rb") as file:
        size = len(file.read())
    with sandbox.open("/tmp/made/for/it", "w") as file:
        file.write("inside")
    with sandbox.open("/tmp/made/for/it", "r") as file:
        made = file.read()
    return [first, rest, some, size, made]


def old_directories():
    sandbox.mkdir("/old/a", parents=True)
    with sandbox.open("/old/f", "w") as file:
        file.write("x")
    names = sorted(sandbox.ls("/old"))
    sandbox.rm("/old", recursive=True)
    return [names, raised(lambda: sandbox.ls("/old"))[0], raised(lambda: sandbox.open("/nope"))[0]]


# --- the command line -----------------------------------------------------------------------------


def modal_cli(*words):
    done = subprocess.run(
        [sys.executable, "-m", "modal", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    return [done.returncode, done.stdout, done.stderr]


def command_line(queue):
    """``modal container``: list, exec, logs and stop of a function's container."""
    call = hold.spawn(queue)
    task_id = queue.get(timeout=60)
    words = ["sh", "-c", "echo in $MODAL_TASK_ID; exit 3"]
    listed = task_id in modal_cli("container", "list")[1]
    code, out, err = modal_cli("container", "exec", "--no-pty", task_id, "--", *words)
    yes = ["--yes"] if RELEASE >= (1, 4) else []
    stopped = modal_cli("container", "stop", *yes, task_id)[0]
    call.cancel()
    return [listed, code, out.strip() == f"in {task_id}", stopped, out[-500:] + err[-500:]]


def main():
    global sandbox, plain
    report = Report()
    check = report.check
    with app.run(), modal.Queue.ephemeral() as queue:
        script = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; id -u"
        plain = check("prepare", lambda: create("sh", "-c", script), 300.0)
        sandbox = create("sleep", "600")
        calls = [output, poll, signalled, missing_program, secrets, workdir, no_shell_words]
        calls += [binary, by_line, unread, both_ways, large_input, timed_out, background, at_once]
        calls += [devnull, limits, ended]
        for call in calls:
            check(call.__name__, call, 90.0)
        if "env" in OPTIONS:
            check("env", env)
        if "pty" in OPTIONS:
            check("terminal", terminal)
            check("terminal_input", terminal_input)
        if hasattr(sandbox, "filesystem"):
            for call in (files, large_file, copies, file_errors, files_without_anything):
                check(call.__name__, call, 90.0)
            for needed, call in (("stat", listing), ("remove", directories), ("watch", watching)):
                if hasattr(sandbox.filesystem, needed):
                    check(call.__name__, call, 90.0)
        if RELEASE < (1, 6):
            check("opened", opened)
            check("old_directories", old_directories)
        check("from_inside", lambda: from_inside.remote(f"{NAME}-inside"), 120.0)
        check("command_line", lambda: command_line(queue), 120.0)


if __name__ == "__main__":
    main()
