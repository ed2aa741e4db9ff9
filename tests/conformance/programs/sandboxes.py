"""Sandboxes: creation, standard streams, ends, names, tags, lists, what surrounds a program."""

import inspect
import os
import tempfile
import time

import modal
import modal.exception
from reporting import Report, raised, until

RELEASE = tuple(int(part) for part in modal.__version__.split(".")[:3])
GENERATION = "v1" if os.environ.get("MODAL_SANDBOX_V2") == "0" or RELEASE < (1, 6) else "v2"
NAME = f"conformance-sandboxes-{modal.__version__}-{GENERATION}".replace(".", "-")
OPTIONS = inspect.signature(modal.Sandbox.create).parameters
MEBI = 1024 * 1024

app = None
image = modal.Image.debian_slim()


def create(*command, **options):
    return modal.Sandbox.create(*command, app=app, image=options.pop("image", image), **options)


def shell(script, **options):
    return create("sh", "-c", script, **options)


def ended(sandbox):
    """Its return code and what it printed."""
    sandbox.wait(raise_on_termination=False)
    return [sandbox.returncode, sandbox.stdout.read(), sandbox.stderr.read()]


def output():
    return ended(shell("echo out; echo err >&2; exit 3"))


def shapes():
    sandbox = create("true")
    sandbox.wait()
    return [sandbox.object_id, sandbox.returncode]


def partial_lines():
    return ended(shell("printf 'a\\303'; sleep 0.3; printf '\\251b'; sleep 0.1; printf 'c\\nd'"))[1]


def unread_output():
    """A program is not held up by output that nobody reads, and nothing of it is lost."""
    sandbox = shell(f"yes 0123456 | head -c {4 * MEBI}; echo end >&2")
    sandbox.wait()
    text = sandbox.stdout.read()
    return [len(text), text == "0123456\n" * (4 * MEBI // 8), sandbox.stderr.read()]


def lines_as_they_come():
    sandbox = shell("for i in 1 2 3; do echo $i; read answer; echo got $answer; done")
    seen = []
    for line in sandbox.stdout:
        seen.append(line)
        if line.strip().isdigit():
            sandbox.stdin.write(f"answer {line.strip()}\n")
            sandbox.stdin.drain()
    return seen


def cat():
    sandbox = create("cat")
    for number in range(200):
        sandbox.stdin.write(f"line {number}\n".encode())
    sandbox.stdin.write_eof()
    sandbox.stdin.drain()
    text = sandbox.stdout.read()
    sandbox.wait()
    return [text == "".join(f"line {number}\n" for number in range(200)), sandbox.returncode]


def large_input():
    sandbox = create("md5sum")
    block = bytes(range(256)) * 1024
    for _ in range(12):
        sandbox.stdin.write(block)
        sandbox.stdin.drain()
    sandbox.stdin.write_eof()
    sandbox.stdin.drain()
    import hashlib

    return sandbox.stdout.read().split()[0] == hashlib.md5(block * 12).hexdigest()


def input_after_the_end():
    sandbox = create("true")
    sandbox.wait()

    def write():
        sandbox.stdin.write(b"late")
        sandbox.stdin.drain()

    return raised(write)


def signalled():
    return ended(shell("kill -9 $$"))[0]


def running():
    sandbox = create("sleep", "100")
    polled = sandbox.poll()
    sandbox.terminate()
    error = raised(lambda: sandbox.wait())
    sandbox.wait(raise_on_termination=False)
    return [polled, error[0], sandbox.returncode, sandbox.poll()]


def terminate_twice():
    sandbox = create("sleep", "100")
    sandbox.terminate()
    sandbox.wait(raise_on_termination=False)
    again = modal.Sandbox.from_id(sandbox.object_id)
    again.terminate()
    return [again.poll(), sandbox.returncode]


def finished_then_terminated():
    sandbox = shell("exit 5")
    sandbox.wait()
    sandbox.terminate()
    return sandbox.returncode


def timed_out():
    sandbox = create("sleep", "100", timeout=1)
    return [raised(sandbox.wait)[0], sandbox.returncode]


def surroundings():
    sandbox = shell(
        "env; pwd; cat /proc/1/comm; hostname; ls -d /__modal 2>&1",
        secrets=[
            modal.Secret.from_dict({"GREETING": "hallo", "SHARED": "first"}),
            modal.Secret.from_dict({"SECOND": "two words", "SHARED": "second"}),
        ],
        workdir="/var/tmp",
    )
    code, text, _ = ended(sandbox)
    lines = text.splitlines()
    env = dict(line.split("=", 1) for line in lines if "=" in line)
    return {"code": code, "env": env, "pwd": "/var/tmp" in lines, "id": sandbox.object_id}


def new_env():
    sandbox = shell(
        "echo $A $B",
        env={"B": "from env"},
        secrets=[modal.Secret.from_dict({"A": "a", "B": "from secret"})],
    )
    return ended(sandbox)[1]


def entrypoint():
    found = image.dockerfile_commands(
        'ENTRYPOINT ["/bin/sh", "-c", "echo entry; exec \\"$@\\"", "name"]', 'CMD ["echo", "cmd"]'
    )
    with_command = ended(create("echo", "given", image=found))[1]
    return [with_command, ended(create(image=found))[1]]


def without_command():
    sandbox = create()
    time.sleep(0.5)
    polled = sandbox.poll()
    sandbox.terminate()
    sandbox.wait(raise_on_termination=False)
    return [polled, sandbox.returncode]


def no_such_program():
    sandbox = create("/no/such/program")
    sandbox.wait(raise_on_termination=False)
    return sandbox.returncode


def names():
    name = f"{NAME}-named"
    first = create("sleep", "100", name=name)
    taken = raised(lambda: create("sleep", "100", name=name))
    found = modal.Sandbox.from_name(NAME, name)
    first.terminate()
    second = create("sleep", "100", name=name)
    again = modal.Sandbox.from_name(NAME, name)
    second.terminate()
    second.wait(raise_on_termination=False)
    gone = raised(lambda: modal.Sandbox.from_name(NAME, name).object_id)
    return {
        "taken": taken,
        "found": found.object_id == first.object_id,
        "again": again.object_id == second.object_id,
        "gone": gone,
        "bad": raised(lambda: create("true", name="no spaces"))[0],
    }


def tags():
    one, two = create("sleep", "100"), create("sleep", "100")
    one.set_tags({"kind": "a", "shared": "x"})
    two.set_tags({"kind": "b", "shared": "x"})
    mine = {one.object_id: "one", two.object_id: "two"}

    def listed(wanted):
        found = modal.Sandbox.list(app_id=app.app_id, tags=wanted)
        return sorted(mine.get(each.object_id, "?") for each in found)

    answer = [listed({"kind": "a"}), listed({"shared": "x"}), listed({"kind": "a", "shared": "y"})]
    one.set_tags({"only": "this"})
    answer += [listed({"shared": "x"}), listed({"only": "this"})]
    if hasattr(one, "get_tags"):
        answer.append(one.get_tags())
    everything = {each.object_id for each in modal.Sandbox.list(app_id=app.app_id)}
    one.terminate()
    one.wait(raise_on_termination=False)
    left = {each.object_id for each in modal.Sandbox.list(app_id=app.app_id)}
    two.terminate()
    return {
        "tags": answer,
        "all": {*mine} <= everything,
        "left": [one.object_id in left, two.object_id in left],
    }


def many_in_a_list():
    made = [create("sleep", "100", cpu=0.005, memory=16) for _ in range(25)]
    ids = {each.object_id for each in made}
    found = [each.object_id for each in modal.Sandbox.list(app_id=app.app_id)]
    for each in made:
        each.terminate()
    return [ids <= {*found}, len(found) == len({*found})]


def from_id():
    sandbox = shell("read line; echo $line; exit 4")
    other = modal.Sandbox.from_id(sandbox.object_id)
    before = other.poll()
    sandbox.stdin.write(b"hello\n")
    sandbox.stdin.write_eof()
    sandbox.stdin.drain()
    other.wait()
    return [before, other.returncode, other.stdout.read()]


def unknown():
    shape = create("true").object_id
    return raised(lambda: modal.Sandbox.from_id(shape[:-4] + "0000").poll())


def volumes():
    volume = modal.Volume.from_name(f"{NAME}-volume", create_if_missing=True)
    written = ended(shell("echo kept > /data/file", volumes={"/data": volume}))[0]
    seen = ended(shell("cat /data/file; echo more >> /data/file", volumes={"/data": volume}))[1]
    return [written, seen, b"".join(volume.read_file("file")).decode()]


def local_files():
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("from here")
        file.flush()
        with_file = image.add_local_file(file.name, "/opt/given/file.txt")
        return ended(shell("cat /opt/given/file.txt", image=with_file))[1]


def snapshot():
    """The files of a running sandbox as an image: written, removed, mounted ones; not a volume's."""
    volume = modal.Volume.from_name(f"{NAME}-snapshot", create_if_missing=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("mounted")
        file.flush()
        base = image.add_local_file(file.name, "/opt/file.txt")
        script = (
            "echo kept > /kept; rm /etc/issue; rm -rf /usr/share/doc; mkdir /usr/share/doc;"
            "echo doc > /usr/share/doc/only; echo secret > /data/file; echo done; read x; echo $x"
        )
        sandbox = shell(script, image=base, volumes={"/data": volume})
        for _ in sandbox.stdout:
            break
        taken = sandbox.snapshot_filesystem()
    sandbox.stdin.write(b"goes on\n")
    sandbox.stdin.write_eof()
    sandbox.stdin.drain()
    sandbox.wait()
    script = "cat /kept /opt/file.txt; ls /etc/issue /usr/share/doc /data /__modal 2>/dev/null"
    return [sandbox.returncode, ended(shell(script, image=taken))[1]]


def no_network():
    script = "import socket; print(*sorted(name for _, name in socket.if_nameindex()))"
    python = modal.Image.debian_slim()
    return ended(create("python", "-c", script, image=python, block_network=True))[1].strip()


CONNECT = """
import errno, socket, struct, sys
routes = [line.split() for line in open("/proc/net/route").readlines()[1:]]
node = next(int(route[2], 16) for route in routes if route[1] == "00000000")
for host in sys.argv[1:]:
    host = socket.inet_ntoa(struct.pack("=I", node)) if host == "node" else host
    probe = socket.socket()
    probe.settimeout(2)
    try:
        probe.connect((host, 9))
        print("open")
    except OSError as error:
        print("refused" if error.errno == errno.EHOSTUNREACH else "other")
"""
ALLOWED, OTHER = "198.51.100.1", "203.0.113.1"


def reached(**options):
    hosts = [ALLOWED, OTHER, "169.254.169.254", "node"]
    return ended(create("python", "-c", CONNECT, *hosts, **options))[1].split()


def networks():
    """What is reached without a list, with one, and with an empty one."""
    name = "outbound_cidr_allowlist" if "outbound_cidr_allowlist" in OPTIONS else "cidr_allowlist"
    lists = [{}, {name: ["198.51.100.0/24"]}]
    if RELEASE >= (1, 4, 3):
        lists.append({name: []})
    return [reached(**options) for options in lists]


def networks_changed():
    """Another list while it runs."""
    sandbox = create("sleep", "100")

    def seen():
        process = sandbox.exec("python", "-c", CONNECT, ALLOWED, OTHER)
        return process.stdout.read().split()

    found = [seen()]
    sandbox._experimental_set_outbound_network_policy(outbound_cidr_allowlist=["198.51.100.0/24"])
    found.append(seen())
    sandbox.terminate()
    return found


def out_of_memory():
    script = "data = bytearray(400 * 1024 * 1024)\nfor i in range(0, len(data), 4096): data[i] = 1"
    return ended(create("python", "-c", script, memory=(32, 64)))[0]


def idle():
    sandbox = create("sleep", "100", idle_timeout=1)
    sandbox.wait(raise_on_termination=False)
    return sandbox.returncode


def terminal():
    sandbox = shell(
        "tty >/dev/null && stty size && echo $TERM; read line; echo read $line", pty=True
    )
    sandbox.stdin.write(b"words\n")
    sandbox.stdin.drain()
    return ended(sandbox)


def ready_port():
    server = "import http.server, time; time.sleep(0.3); http.server.test(port=8000)"
    sandbox = create("python", "-c", server, readiness_probe=modal.Probe.with_tcp(8000))
    sandbox.wait_until_ready(timeout=30)
    sandbox.terminate()
    return sandbox.poll() in (None, 137)


def ready_command():
    probe = modal.Probe.with_exec("test", "-e", "/tmp/ready", interval_ms=50)
    sandbox = shell("sleep 0.4; touch /tmp/ready; sleep 100", readiness_probe=probe)
    sandbox.wait_until_ready(timeout=30)
    sandbox.terminate()
    return True


def never_ready():
    sandbox = create("sleep", "100", readiness_probe=modal.Probe.with_tcp(9))
    late = raised(lambda: sandbox.wait_until_ready(timeout=1))[0]
    sandbox.terminate()
    without = create("sleep", "100")
    missing = raised(lambda: without.wait_until_ready(timeout=1))[0]
    without.terminate()
    return [late, missing]


def app_ends():
    """An app's sandboxes end with it."""
    own = modal.App(f"{NAME}-ephemeral")
    with own.run():
        sandbox = modal.Sandbox.create("sleep", "100", app=own, image=image)
        before = sandbox.poll()
    other = modal.Sandbox.from_id(sandbox.object_id)
    return [before, until(lambda: other.poll())]


def many_at_once():
    import concurrent.futures

    def one(number):
        sandbox = shell(f"echo {number}", cpu=0.005, memory=16)
        return ended(sandbox)[1] == f"{number}\n"

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return all(pool.map(one, range(64)))


def main():
    global app
    report = Report()
    check = report.check
    app = modal.App.lookup(NAME, create_if_missing=True)
    check("prepare", lambda: ended(create("true"))[0], 300.0)
    plain = [output, shapes, partial_lines, unread_output, lines_as_they_come, cat, large_input]
    plain += [input_after_the_end, signalled, running, terminate_twice, finished_then_terminated]
    plain += [timed_out, surroundings, entrypoint, without_command, no_such_program, tags]
    plain += [many_in_a_list, from_id, unknown, volumes, local_files, no_network, out_of_memory]
    plain += [snapshot, app_ends, many_at_once]
    for call in plain:
        check(call.__name__, call, 90.0)
    check("networks", networks)
    if hasattr(modal.Sandbox, "_experimental_set_outbound_network_policy"):
        check("networks_changed", networks_changed)
    if "env" in OPTIONS:
        check("new_env", new_env)
    if "name" in OPTIONS:
        check("names", names)
    if "idle_timeout" in OPTIONS:
        check("idle", idle)
    if "pty" in OPTIONS:
        check("terminal", terminal)
    if "readiness_probe" in OPTIONS:
        for call in (ready_port, ready_command, never_ready):
            check(call.__name__, call)


if __name__ == "__main__":
    main()
