"""Sandboxes asked for what is odd, too much, too late or wrong; and arguments that are used seldom."""

import concurrent.futures
import hashlib
import inspect
import os
import threading
import time

import modal
import modal.exception
from reporting import Report, raised, until

RELEASE = tuple(int(part) for part in modal.__version__.split(".")[:3])
GENERATION = "v1" if os.environ.get("MODAL_SANDBOX_V2") == "0" or RELEASE < (1, 6) else "v2"
NAME = f"conformance-sandbox-odd-{modal.__version__}-{GENERATION}".replace(".", "-")
CREATE = inspect.signature(modal.Sandbox.create).parameters
EXEC = inspect.signature(modal.Sandbox.exec).parameters
MEBI = 1024 * 1024

app = None
box = None
"""One that lives through all of it."""
image = modal.Image.debian_slim()


def create(*command, **options):
    return modal.Sandbox.create(
        *command, app=options.pop("app", app), image=options.pop("image", image), **options
    )


def sh(script, sandbox=None, **options):
    """Exit code and output of a script."""
    process = (sandbox or box).exec("sh", "-c", script, **options)
    return [process.wait(), process.stdout.read(), process.stderr.read()]


def gone(sandbox):
    """Ended, and known to be."""
    sandbox.terminate()
    sandbox.wait(raise_on_termination=False)
    return sandbox


# --- creation -------------------------------------------------------------------------------------


def bad_arguments():
    """What each gives: the kind of error and its sentence."""
    wanted = {
        "relative_workdir": {"workdir": "tmp"},
        "timeout_0": {"timeout": -1},
        "timeout_long": {"timeout": 24 * 3600 + 1},
        "cpu": {"cpu": -1},
        "cpu_limit": {"cpu": (2, 1)},
        "memory_limit": {"memory": (512, 128)},
        "port": {"encrypted_ports": [70000]},
        "volume_at_root": {"volumes": {"/": modal.Volume.from_name(NAME, create_if_missing=True)}},
        "no_secret": {"secrets": [modal.Secret.from_name("conformance-no-such-secret")]},
        "no_image": {"image": modal.Image.from_id("im-0000000000000000000000")},
        "network": {"cidr_allowlist": ["not a network"]},
    }
    if "outbound_domain_allowlist" in CREATE:
        wanted["domain"] = {"outbound_domain_allowlist": ["http://example.com/"]}
    if "idle_timeout" in CREATE:
        wanted["idle"] = {"idle_timeout": -5}
    if "custom_domain" in CREATE:
        wanted["custom_domain"] = {"custom_domain": "example.com"}
    if "include_oidc_identity_token" in CREATE:
        wanted["identity_token"] = {"include_oidc_identity_token": True}
    if "experimental_options" in CREATE:
        wanted["option"] = {"experimental_options": {"enable_docker": True}}
    if "runtime" in CREATE:
        wanted["virtual_machine"] = {"runtime": "vm"}
    found = {name: raised(lambda: create("true", **options)) for name, options in wanted.items()}  # noqa: B023
    found["long_command"] = raised(lambda: create("x" * 70_000))
    found["no_app"] = raised(
        lambda: modal.Sandbox.create("true", app=modal.App.lookup("conformance-no-such-app"))
    )
    return found


def workdir_that_is_not_there():
    """It is made, as an image's own would be, or its lack is said: whatever it is, clearly."""
    sandbox = create("pwd", workdir="/not/there")
    sandbox.wait(raise_on_termination=False)
    return [sandbox.returncode, sandbox.stdout.read()]


def seldom():
    """Arguments that say where or how, which one machine has no choice about, and limits."""
    options = {"cpu": (0.1, 0.5), "memory": (64, 256), "region": "us-east", "cloud": "aws"}
    if "verbose" in CREATE:
        options["verbose"] = True
    sandbox = create("sh", "-c", "cat /sys/fs/cgroup/memory.max 2>/dev/null; echo done", **options)
    sandbox.wait()
    return [sandbox.returncode, sandbox.stdout.read().split()[-1]]


def runtime():
    """The runtime that is asked for is the one that is had, or there is an error."""
    try:
        sandbox = create("dmesg", runtime="gvisor")
    except Exception as error:
        return [type(error).__name__, str(error)]
    sandbox.wait(raise_on_termination=False)
    text = sandbox.stdout.read()
    return [sandbox.returncode, "gVisor" in text]


def environment():
    """None takes a variable away again; odd values arrive as they are."""
    values = {"A": "x" * 10_000, "B": "ünï\nline", "C": "", "D": " $HOME `id` "}
    sandbox = create(
        "sh",
        "-c",
        'printf "%s|" "$A" "$B" "${C-unset}" "$D" "${E-unset}"',
        env={**values, "E": None},
    )
    sandbox.wait()
    seen = sandbox.stdout.read().split("|")[:-1]
    return [seen[:4] == [*values.values()], seen[4]]


def odd_names():
    bad = ["", "with space", "a/b", "ü", "x" * 65, "a\n", "sb-0123456789abcdefghijkl"]
    found = {}
    for name in bad:
        try:
            sandbox = create("sleep", "60", name=name)
            found[name] = "made"
            sandbox.terminate()
        except Exception as error:
            found[name] = type(error).__name__
    for name in ("x" * 64, "A.b_c-1", "-", "0"):
        sandbox = create("sleep", "60", name=name)
        same = modal.Sandbox.from_name(NAME, name).object_id == sandbox.object_id
        found[name] = "made" if same else "lost"
        gone(sandbox)
    return found


def same_name_at_once():
    """Of many that want a name one gets it."""
    name = f"{NAME}-race"[-64:]

    def one(_):
        try:
            return create("sleep", "60", name=name)
        except modal.exception.AlreadyExistsError:
            return None

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = [each for each in pool.map(one, range(8)) if each is not None]
    for each in made:
        gone(each)
    return len(made)


def names_later():
    """A sandbox without a name can get one, once (client 1.6)."""
    sandbox, other = create("sleep", "60"), create("sleep", "60")
    name = f"{NAME}-later"[-64:]
    sandbox._experimental_set_name(name)
    sandbox._experimental_set_name(name)
    found = [modal.Sandbox.from_name(NAME, name).object_id == sandbox.object_id]
    found.append(raised(lambda: other._experimental_set_name(name))[0])
    found.append(raised(lambda: sandbox._experimental_set_name("another"))[0])
    found.append(raised(lambda: other._experimental_set_name("no spaces"))[0])
    gone(sandbox)
    other._experimental_set_name(name)
    found.append(modal.Sandbox.from_name(NAME, name).object_id == other.object_id)
    gone(other)
    return found


def ended_by_name():
    """The last one of that name, when it has ended as well (client 1.6.4)."""
    name = f"{NAME}-ended"[-64:]
    first = gone(create("sleep", "60", name=name))
    second = create("sh", "-c", "exit 3", name=name)
    second.wait()
    missing = raised(lambda: modal.Sandbox.from_name(NAME, name).object_id)[0]
    found = modal.Sandbox.from_name(NAME, name, include_terminated=True)
    return [
        missing,
        found.object_id == second.object_id,
        first.object_id != second.object_id,
        found.poll(),
    ]


def odd_tags():
    values = {"empty": "", "ünï": "ß € 🎉", "a b": " ", "quote\"'": "x\ny", "long": "v" * 200}
    sandbox = create("sleep", "60")
    sandbox.set_tags(values)
    found = [modal.Sandbox.from_id(sandbox.object_id).object_id == sandbox.object_id]
    if hasattr(sandbox, "get_tags"):
        found.append(sandbox.get_tags() == values)
    one = {"quote\"'": "x\ny", "ünï": "ß € 🎉"}
    found.append(
        [each.object_id for each in modal.Sandbox.list(app_id=app.app_id, tags=one)]
        == [sandbox.object_id]
    )
    none = {"quote\"'": "x"}
    found.append([*modal.Sandbox.list(app_id=app.app_id, tags=none)])
    sandbox.set_tags({})
    found.append([*modal.Sandbox.list(app_id=app.app_id, tags=one)])
    found.append(raised(lambda: sandbox.set_tags({"": "x"}))[0])
    found.append(raised(lambda: sandbox.set_tags({"big": "x" * 3 * MEBI}))[0])
    found.append(raised(lambda: sandbox.set_tags({str(n): "x" for n in range(100_000)}))[0])
    gone(sandbox)
    return found


def tags_at_creation():
    sandbox = create("sleep", "60", tags={"from": "start"})
    found = [
        each.object_id for each in modal.Sandbox.list(app_id=app.app_id, tags={"from": "start"})
    ]
    gone(sandbox)
    return [found == [sandbox.object_id], raised(lambda: create("true", tags={"": "x"}))[0]]


def detached():
    """What can still be done with a handle that was let go, and what cannot."""
    sandbox = create("sh", "-c", "echo out; read x; exit 4")
    sandbox.exec("true").wait()
    sandbox.detach()
    refused = raised(lambda: sandbox.exec("true"))[0]
    again = modal.Sandbox.from_id(sandbox.object_id)
    again.stdin.write_eof()
    again.stdin.drain()
    return [refused, sandbox.wait(), sandbox.returncode, again.stdout.read()]


# --- ends -----------------------------------------------------------------------------------------


def waited_for_by_many():
    """All who wait are told of the end, and of the same one."""
    sandbox = create("sh", "-c", "read x; exit 6")
    handles = [modal.Sandbox.from_id(sandbox.object_id) for _ in range(20)]

    def one(handle):
        handle.wait()
        return handle.returncode

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        waits = [pool.submit(one, handle) for handle in handles]
        time.sleep(0.5)
        sandbox.stdin.write_eof()
        sandbox.stdin.drain()
        return {wait.result() for wait in waits} == {6}


def terminated_meanwhile():
    """Its program, what was executed in it and those who read and wait for it all end."""
    sandbox = create("sleep", "600")
    process = sandbox.exec("sh", "-c", "echo begun; sleep 600")
    lines = iter(process.stdout)
    begun = next(lines)
    ends = {}

    def note(name, call):
        ends[name] = raised(call)

    threads = [
        threading.Thread(target=note, args=("read", lambda: list(lines))),
        threading.Thread(target=note, args=("wait", process.wait)),
        threading.Thread(
            target=note, args=("sandbox", lambda: sandbox.wait(raise_on_termination=False))
        ),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    sandbox.terminate()
    for thread in threads:
        thread.join(30)
    hung = [thread.is_alive() for thread in threads]
    return [begun, hung, ends, sandbox.returncode]


def after_the_end():
    """Each use of one that has ended."""
    sandbox = gone(create("sleep", "600"))
    uses = {
        "exec": lambda: sandbox.exec("true").wait(),
        "tunnels": lambda: sandbox.tunnels(timeout=1),
        "snapshot": lambda: sandbox.snapshot_filesystem(),
        "set_tags": lambda: sandbox.set_tags({"late": "yes"}),
        "terminate": lambda: sandbox.terminate(),
        "poll": lambda: sandbox.poll(),
        "stdout": lambda: sandbox.stdout.read(),
    }
    if hasattr(sandbox, "filesystem"):
        uses["files"] = lambda: sandbox.filesystem.read_text("/etc/hostname")
    if RELEASE < (1, 6):
        uses["open"] = lambda: sandbox.open("/etc/hostname")
    if hasattr(sandbox, "reload_volumes"):
        uses["reload"] = lambda: sandbox.reload_volumes()
    if hasattr(sandbox, "create_connect_token"):
        uses["connect"] = lambda: sandbox.create_connect_token()
    return {name: raised(use) for name, use in uses.items()}


def terminate_and_wait():
    return [create("sleep", "600").terminate(wait=True)]


def short_lives():
    """A second to live: enough for what is done in that time, and no more."""
    first = create("sh", "-c", "echo there; sleep 600", timeout=1)
    kind = raised(first.wait)[0]
    return [kind, first.returncode, first.stdout.read()]


# --- programs -------------------------------------------------------------------------------------


def odd_programs():
    """Those that cannot be executed."""
    sh(
        "printf '#!/no/such/interpreter\\n' > /bad; chmod +x /bad; echo text > /text; chmod 644 /text"
    )
    found = {
        "none": raised(lambda: box.exec("/no/such").wait()),
        "directory": raised(lambda: box.exec("/etc").wait()),
        "not_executable": raised(lambda: box.exec("/text").wait()),
        "bad_interpreter": raised(lambda: box.exec("/bad").wait()),
        "no_words": raised(lambda: box.exec().wait()),
        "empty_word": raised(lambda: box.exec("").wait()),
        "long": raised(lambda: box.exec("echo", "x" * 70_000).wait()),
        "workdir": raised(lambda: box.exec("pwd", workdir="/no/such").wait()),
        "workdir_file": raised(lambda: box.exec("pwd", workdir="/etc/passwd").wait()),
        "relative": raised(lambda: box.exec("pwd", workdir="etc").wait()),
        "secret": raised(
            lambda: box.exec("env", secrets=[modal.Secret.from_name("conformance-no-such")]).wait()
        ),
        "nul": raised(lambda: box.exec("echo", "a\0b").wait()),
    }
    found["still"] = sh("echo works")[1]
    return found


def exec_environment():
    """None takes a variable away; the order of secrets and env."""
    secret = modal.Secret.from_dict({"A": "secret", "B": "secret"})
    return sh('echo "$A" "$B" "${C-unset}"', env={"B": "env", "C": None}, secrets=[secret])[1]


def printed_here():
    """``StreamType.STDOUT`` prints what a program prints where the client runs."""
    stdout = modal.stream_type.StreamType.STDOUT
    process = box.exec(
        "sh", "-c", "echo seen here; echo and here >&2", stdout=stdout, stderr=stdout
    )
    return process.wait()


def many_programs():
    """200 at once in one sandbox, each with its own input and output."""
    processes = [box.exec("sh", "-c", f"read x; echo {n} $x; exit {n % 100}") for n in range(200)]
    for number, process in enumerate(processes):
        process.stdin.write(f"word{number}\n")
        process.stdin.write_eof()
        process.stdin.drain()
    return all(
        [process.stdout.read(), process.wait()] == [f"{n} word{n}\n", n % 100]
        for n, process in enumerate(processes)
    )


def large_streams():
    """100 MB into a program and 100 MB out of it, binary, byte for byte."""
    block = os.urandom(MEBI)
    process = box.exec("tee", "/dev/null", text=False)
    digest = hashlib.sha256()
    size = 0

    def read():
        nonlocal size
        for piece in process.stdout:
            digest.update(piece)
            size += len(piece)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        process.stdin.write(block)
        process.stdin.drain()
    process.stdin.write_eof()
    process.stdin.drain()
    reader.join()
    expected = hashlib.sha256()
    for _ in range(100):
        expected.update(block)
    return [process.wait(), size == 100 * MEBI, digest.digest() == expected.digest()]


def large_output_of_the_sandbox():
    """Its own program's 40 MB of bytes that are no text are counted, whatever reads them."""
    sandbox = create("sh", "-c", f"head -c {40 * MEBI} /dev/zero | tr '\\0' x; echo; echo end >&2")
    sandbox.wait()
    text = sandbox.stdout.read()
    return [len(text), text.count("x"), sandbox.stderr.read()]


def not_text():
    """Bytes that are no UTF-8, as bytes; a reader of text is told."""
    process = box.exec("printf", "a\\377b\\n", text=False)
    data = process.stdout.read()
    process = box.exec("printf", "a\\377b\\n")
    return [list(data), raised(lambda: process.stdout.read())[0]]


def short_timeout():
    """A second; what was printed before is there."""
    process = box.exec("sh", "-c", "echo before; exec sleep 611", timeout=1)
    text = process.stdout.read()
    code = process.wait()
    count = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'sleep [6]11 '"
    # some clients have a deadline of their own, which may come a moment before its end
    left = sh(
        f"for i in $(seq 100); do n=$({count}); [ $n = 0 ] && break; sleep 0.1; done; echo $n"
    )
    return [code in (-1, 124, 137), text, left[1].strip()]


def input_of_the_deaf():
    """Input for a program that does not read and ends."""
    process = box.exec("sh", "-c", "exit 5")

    def write():
        for _ in range(64):
            process.stdin.write(b"x" * MEBI)
            process.stdin.drain()

    kind = raised(write)[0]
    return [process.wait(), kind]


# --- files ----------------------------------------------------------------------------------------


def odd_paths():
    files = box.filesystem
    names = [
        "/odd/a b",
        "/odd/ünï",
        "/odd/new\nline",
        "/odd/quote'\"",
        "/odd/-rf",
        "/odd/" + "n" * 255,
    ]
    for name in names:
        files.write_text(name, name)
    kept = [files.read_text(name) == name for name in names]
    wrong = {
        "relative": raised(lambda: files.read_text("odd/a b")),
        "empty": raised(lambda: files.read_text("")),
        "too_long": raised(lambda: files.write_text("x", "/odd/" + "n" * 256)),
        "nul": raised(lambda: files.write_text("x", "/odd/a\0b")),
        "loop": raised(lambda: [sh("ln -s loop /odd/loop"), files.read_text("/odd/loop")][1]),
        "fifo": raised(lambda: [sh("mkfifo /odd/fifo"), files.read_text("/odd/fifo")][1]),
        "socket_write": raised(lambda: files.write_text("x", "/odd/fifo")),
        "proc": raised(lambda: files.read_text("/proc/self/mem")),
        "full": raised(lambda: files.write_text("x", "/dev/full")),
    }
    if hasattr(files, "list_files"):
        names_seen = {entry.path for entry in files.list_files("/odd")}
        kept.append({*names} <= names_seen)
        wrong["remove_root"] = raised(lambda: files.remove("/", recursive=True))
        wrong["remove_proc"] = raised(lambda: files.remove("/proc/self", recursive=True))
    return [kept, wrong, sh("echo works")[1]]


def read_only_places():
    """Files under a read-only volume."""
    volume = modal.Volume.from_name(NAME, create_if_missing=True).read_only()
    sandbox = create("sleep", "60", volumes={"/data": volume})
    found = raised(lambda: sandbox.filesystem.write_text("x", "/data/file"))
    gone(sandbox)
    return found


def huge_file():
    """A large file through the file API, to a sandbox and back."""
    size = int(os.environ.get("CONFORMANCE_FILE_MB", "128")) * MEBI
    digest = hashlib.sha256()
    with open("huge.bin", "wb") as file:
        for number in range(size // MEBI):
            block = bytes([number % 251]) * MEBI
            digest.update(block)
            file.write(block)
    box.filesystem.copy_from_local("huge.bin", "/tmp/huge.bin")
    there = sh("sha256sum < /tmp/huge.bin; stat -c %s /tmp/huge.bin")[1].split()
    box.filesystem.copy_to_local("/tmp/huge.bin", "back.bin")
    back = hashlib.sha256()
    with open("back.bin", "rb") as file:
        while block := file.read(MEBI):
            back.update(block)
    for name in ("huge.bin", "back.bin"):
        os.unlink(name)
    sh("rm /tmp/huge.bin")
    same = digest.hexdigest()
    return [there[0] == same, int(there[-1]) == size, back.hexdigest() == same]


def watched_crowd():
    """A thousand files come and go under a watch; each that came is told of."""
    sh("rm -rf /crowd; mkdir /crowd; mkdir /crowd/sub")
    seen, begun = set(), threading.Event()

    def watch():
        for event in box.filesystem.watch("/crowd", recursive=True, timeout=60):
            begun.set()
            seen.update(event.paths)
            if "/crowd/last" in event.paths:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    until(lambda: [sh("echo x > /crowd/first"), begun.is_set()][1], 30.0, 0.1)
    sh(
        "for i in $(seq 1000); do echo $i > /crowd/sub/$i; done; rm -r /crowd/sub; sleep 1; echo x > /crowd/last"
    )
    thread.join(90)
    wanted = {f"/crowd/sub/{number}" for number in range(1, 1001)}
    return [thread.is_alive(), len(wanted - seen), "/crowd/last" in seen]


def files_at_once():
    """Many reads and writes at the same time, also of the same file."""

    def one(number):
        path = f"/tmp/many/{number % 40}"
        box.filesystem.write_text(f"{number % 40}" * 1000, path)
        return box.filesystem.read_text(path) in (f"{number % 40}" * 1000, "")

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return all(pool.map(one, range(200)))


def written_while_snapshot():
    """A snapshot of one that writes: what is in it is whole up to some moment."""
    sandbox = create("sh", "-c", "n=0; while :; do n=$((n+1)); echo $n >> /log; done")
    until(lambda: sh("test -s /log", sandbox)[0] == 0)
    taken = sandbox.snapshot_filesystem()
    before = sh("wc -l < /log", sandbox)[1]
    until(lambda: int(sh("wc -l < /log", sandbox)[1]) > int(before))  # it goes on
    gone(sandbox)
    other = create("cat", "/log", image=taken)
    other.wait()
    numbers = other.stdout.read().split()
    return [
        numbers[:-1] == [str(n) for n in range(1, len(numbers))],
        0 < len(numbers) <= int(before) + 1,
    ]


def options_of_snapshots():
    """How long images of files are to be kept: for ever, for a time, and what is neither."""
    for_ever = box.snapshot_filesystem(ttl=None)
    sandbox = create("true", image=modal.Image.from_id(for_ever.object_id))
    sandbox.wait()
    sh("mkdir -p /kept && echo x > /kept/x")
    box.mount_image("/again", box.snapshot_directory("/kept", ttl=60))
    return [
        sandbox.returncode,
        sh("cat /again/x")[1],
        raised(lambda: box.snapshot_filesystem(ttl=0))[0],
        raised(lambda: box.snapshot_directory("/kept", ttl=-3))[0],
    ]


def refused():
    """What there is not says so by its name, at once (client 1.6.4)."""
    from modal.experimental import OutboundPolicy

    policy = OutboundPolicy().with_header_replacement(domain="example.com", headers={"X": "y"})
    key = os.urandom(32)
    calls = {
        "policy": lambda: create("true", _experimental_outbound_policy=policy),
        "policy_later": lambda: box._experimental_update_outbound_policy(policy),
        "key": lambda: box.snapshot_directory("/etc", _experimental_encryption_key=key),
    }
    return {name: raised(call) for name, call in calls.items()}


def listed_everywhere():
    """Without an app: those of the environment."""
    everything = [each.object_id for each in modal.Sandbox.list()]
    unknown = raised(lambda: [*modal.Sandbox.list(app_id="ap-0000000000000000000000")])
    return [box.object_id in everything, len(everything) == len({*everything}), unknown]


def old_api():
    """``open``, ``ls``, ``mkdir``, ``rm``, ``watch`` of clients before 1.6 on what is not right."""
    sh("mkdir -p /olds/full/x; echo y > /olds/file; ln -s loop /olds/loop")
    cases = {
        "open_directory": lambda: box.open("/olds", "w"),
        "open_below_file": lambda: box.open("/olds/file/x", "w"),
        "open_exclusive": lambda: box.open("/olds/file", "x"),
        "open_mode": lambda: box.open("/olds/file", "q"),
        "ls_file": lambda: box.ls("/olds/file"),
        "mkdir_existing": lambda: box.mkdir("/olds/full"),
        "mkdir_orphan": lambda: box.mkdir("/olds/none/deep"),
        "rm_missing": lambda: box.rm("/olds/none"),
        "rm_full": lambda: box.rm("/olds/full"),
        "watch_missing": lambda: list(box.watch("/olds/none", timeout=1)),
    }
    found = {name: raised(call)[0] for name, call in cases.items()}
    with box.open("/olds/bytes", "wb") as file:
        for _ in range(20):
            file.write(bytes(range(256)) * 4096)
    with box.open("/olds/bytes", "rb") as file:
        found["large"] = file.read() == bytes(range(256)) * 4096 * 20
    return found


def main():
    global app, box
    report = Report()

    def check(call, timeout=90.0):
        report.check(call.__name__, call, timeout)

    app = modal.App.lookup(NAME, create_if_missing=True)
    report.check("prepare", lambda: create("true").wait(), 300.0)
    box = create("sleep", "3000", timeout=3000)
    for call in (bad_arguments, workdir_that_is_not_there, seldom, odd_tags, waited_for_by_many):
        check(call)
    for call in (terminated_meanwhile, after_the_end, short_lives, odd_programs, printed_here):
        check(call)
    for call in (many_programs, large_output_of_the_sandbox, not_text, short_timeout):
        check(call)
    check(large_streams, 180.0)
    for call in (input_of_the_deaf, written_while_snapshot, listed_everywhere):
        check(call)
    if "runtime" in CREATE:
        check(runtime)
    if "env" in CREATE:
        check(environment)
        check(exec_environment)
    if "name" in CREATE:
        check(odd_names)
        check(same_name_at_once)
    if hasattr(modal.Sandbox, "_experimental_set_name"):
        check(names_later)
    if RELEASE >= (1, 6, 4):
        check(ended_by_name)
        check(refused)
    if "tags" in CREATE:
        check(tags_at_creation)
    if hasattr(modal.Sandbox, "detach"):
        check(detached)
    if "wait" in inspect.signature(modal.Sandbox.terminate).parameters:
        check(terminate_and_wait)
    if hasattr(modal.Sandbox, "filesystem"):
        check(odd_paths)
        check(files_at_once)
        check(read_only_places)
        check(huge_file, 240.0)
        if RELEASE >= (1, 5):
            check(options_of_snapshots)
            check(watched_crowd, 150.0)
    if RELEASE < (1, 6):
        check(old_api)
    box.terminate()


if __name__ == "__main__":
    main()
