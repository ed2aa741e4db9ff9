"""What untrusted code tries, by programs in a sandbox and by its files; all of it should fail.

Arguments: a file of the host that nobody in a container may see.
"""

import os
import sys
import threading

import modal
from reporting import Report

NAME = "conformance-escapes"
SYSCALLS = """
import ctypes, os, json
libc = ctypes.CDLL(None, use_errno=True)
numbers = {
    "mount": 165, "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308, "chroot_out": 161,
    "open_by_handle_at": 304, "bpf": 321, "keyctl": 250, "add_key": 248, "kexec_load": 246,
    "init_module": 175, "finit_module": 313, "delete_module": 176, "reboot": 169, "swapon": 167,
    "settimeofday": 164, "iopl": 172, "ioperm": 173, "syslog": 103, "acct": 163,
    "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "mount_setattr": 442, "clone_newuser": 56, "ptrace_init": 101,
}
arguments = {"unshare": (0x10000000,), "clone_newuser": (0x10000000 | 17, 0, 0, 0, 0),
             "ptrace_init": (16, 1, 0, 0), "chroot_out": (b"/proc/1/root/..",), "syslog": (3, 0, 0)}
found = {}
for name, number in numbers.items():
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments.get(name, (0, 0, 0, 0, 0)))
    if name == "clone_newuser" and result == 0:
        os._exit(0)
    found[name] = 0 if result >= 0 else ctypes.get_errno()
print(json.dumps(found))
"""
FORKS = """
import os, time
count = 0
try:
    while count < 5000:
        if os.fork() == 0:
            time.sleep(300)
            os._exit(0)
        count += 1
except OSError as error:
    print(count, error.errno)
"""
GVISOR = os.environ.get("HOMEPORT_SANDBOX_RUNTIME") == "runsc"
BOMB = "data = []\nwhile True: data.append(bytearray(16 * 1024 * 1024))"

app = None
sandbox = None
hidden = sys.argv[1] if len(sys.argv) > 1 else ""


def run(*command, **options):
    process = sandbox.exec(*command, **options)
    output = process.stdout.read() + process.stderr.read()
    return [process.wait(), output]


def sh(script):
    return run("sh", "-c", script)


def raised(call):
    """The kind of error that ``call`` gives, or what it returned."""
    try:
        return ["nothing", repr(call())]
    except Exception as error:
        return [type(error).__name__, str(error)]


def host_files():
    """Ways to a file of the host: by name, by other processes, by links, by open descriptors."""
    ways = [hidden, f"/proc/1/root{hidden}", f"/proc/self/root{hidden}", f"/../../..{hidden}"]
    ways += [f"/proc/1/cwd{hidden}", f"/proc/2/root/../..{hidden}"]
    seen = {way: run("cat", way) for way in ways}
    seen["descriptors"] = sh(f"for fd in /proc/[0-9]*/fd/*; do cat $fd{hidden}; done 2>/dev/null")
    sh(f"ln -s {hidden} /tmp/out; ln -s /proc/1/root{hidden} /tmp/around")
    for way in [*ways, "/tmp/out", "/tmp/around"]:
        seen[f"file {way}"] = raised(lambda path=way: sandbox.filesystem.read_text(path))
    return seen


def racing_links():
    """A path that keeps changing between a file and a link to the host's."""
    script = f"""while :; do
        ln -sfn {hidden} /tmp/race; rm -f /tmp/race; echo own > /tmp/race; rm -f /tmp/race
        ln -sfn / /tmp/racing; rm -f /tmp/racing; mkdir /tmp/racing; rmdir /tmp/racing
    done"""
    process = sandbox.exec("sh", "-c", script, timeout=60)
    results = set()

    def read():
        for _ in range(60):
            for path in ("/tmp/race", f"/tmp/racing{hidden}"):
                kind, text = raised(lambda path=path: sandbox.filesystem.read_text(path))
                results.add(text if kind == "nothing" else kind)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sh("kill -9 $(ps ax 2>/dev/null | grep '[l]n -sfn' | cut -c1-7) 2>/dev/null")
    del process
    return sorted(results)


def kernel_settings():
    """Files of /proc and /sys that change the machine."""
    paths = ["/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"]
    paths += [
        "/proc/sys/vm/drop_caches",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/cgroup.procs",
    ]
    paths += ["/proc/sys/fs/binfmt_misc/register"]
    seen = {path: sh(f"echo x > {path}")[0] for path in paths}
    for path in paths:
        kind = raised(lambda path=path: sandbox.filesystem.write_text("x", path))[0]
        seen[f"file {path}"] = kind if kind != "nothing" else 0
    return seen


def devices():
    """Nodes that are there, and nodes that one makes."""
    script = "mknod /tmp/disk b 8 0; mknod /tmp/mem c 1 1; mknod /tmp/vda b 254 0; "
    script += "for d in /tmp/disk /tmp/mem /tmp/vda /dev/mem /dev/kmsg /dev/sda /dev/vda; do "
    script += "head -c 1 $d >/dev/null 2>&1 && echo opened $d; done; true"
    return sh(script)


def system_calls():
    return run("python3", "-c", SYSCALLS)


def process_one():
    """The container's first process can neither be killed nor looked into."""
    # under gVisor root may end the container that way, which harms nobody else
    killed = sh("true" if GVISOR else "kill -9 1; true")[0]
    return [killed, sh("cat /proc/1/environ | wc -c")[1], sh("true")]


def working_directory():
    """Descriptors of the launcher are no way out."""
    return [raised(lambda n=n: run("pwd", workdir=f"/proc/self/fd/{n}"))[0] for n in range(3, 12)]


def own_program():
    """The launcher's program cannot be replaced by running it."""
    # under gVisor a running program's file can be written, here the sandbox's own shell
    script = "test -x /proc/self/exe && false" if GVISOR else "echo x > /proc/self/exe"
    return [run("/proc/self/exe")[0] != 0, sh(script)[0] != 0]


def more_rights():
    """A set-uid program gives nothing to those who may not have it."""
    script = "cp /bin/cat /tmp/cat; chmod 4755 /tmp/cat; chmod 600 /etc/shadow; "
    script += "python3 -c 'import os; os.setgid(65534); os.setuid(65534); "
    script += 'os.execv("/tmp/cat", ["cat", "/etc/shadow"])\''
    return sh(script)[0]


def unseen_helpers():
    """Nobody in the container sees who serves its files."""
    sandbox.filesystem.write_text("x", "/tmp/seen")
    return sh(
        "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '[w]orker.py' || true"
    )[1]


def bad_file_commands():
    """Commands that are none do not end what serves the container's files."""
    tool = "/__modal/.bin/modal-sandbox-fs-tools"
    commands = ["", "{", "[]", '{"ReadFile": 3}', '{"Exec": {"path": "/bin/sh"}}', '{"Stat": {}}']
    commands += ['{"ReadFile": {"path": "a\\u0000b"}}', '{"Watch": {"path": 1}}']
    ends = []
    for command in commands:
        kind, text = raised(lambda command=command: run(tool, command))
        ends.append(kind if kind != "nothing" else eval(text)[0])
    sandbox.filesystem.write_text("alive", "/tmp/alive")
    return [ends, sandbox.filesystem.read_text("/tmp/alive")]


def fork_bomb():
    other = modal.Sandbox.create("sleep", "300", app=app, image=modal.Image.debian_slim())
    process = other.exec("python3", "-c", FORKS)
    output = process.stdout.read()
    process.wait()
    refused = raised(lambda: other.exec("true").wait())
    files = raised(lambda: other.filesystem.write_text("x", "/tmp/x"))[0]
    other.terminate()
    return [output.split(), refused, files]


def memory_bomb():
    other = modal.Sandbox.create(
        "sleep", "300", app=app, image=modal.Image.debian_slim(), memory=(64, 128)
    )
    code = other.exec("python3", "-c", BOMB).wait()
    other.terminate()
    return code


def main():
    global app, sandbox
    report = Report()
    app = modal.App.lookup(NAME, create_if_missing=True)
    sandbox = report.check(
        "prepare",
        lambda: modal.Sandbox.create("sleep", "900", app=app, image=modal.Image.debian_slim()),
        300.0,
    )
    calls = [host_files, racing_links, kernel_settings, devices, system_calls, process_one]
    calls += [working_directory, own_program, more_rights, unseen_helpers, bad_file_commands]
    calls += [fork_bomb, memory_bomb]
    for call in calls:
        report.check(call.__name__, call, 120.0)
    report.check("still_there", lambda: sh("echo yes"))
    sandbox.terminate()


if __name__ == "__main__":
    main()
