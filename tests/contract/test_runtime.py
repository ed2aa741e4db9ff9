"""What every runtime must do; the same suite for each tool that is installed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from homeport.kernel.resources import Limits
from homeport.node.leaks import find_leaks
from homeport.node.network import interface_names, network_tag
from homeport.node.peers import connect
from homeport.node.router.files import FileTools
from homeport.node.runtime import keeper
from homeport.node.runtime.container import RunningContainer
from homeport.node.runtime.create import create_runtime
from homeport.node.runtime.port import (
    Bind,
    Container,
    ContainerEndedError,
    ContainerStartError,
    ExecError,
    ExecSpec,
    ImageTree,
    MountedImage,
    Overlay,
    RuntimeUnavailableError,
)
from homeport.node.runtime.records import OUTER_PREFIX, find_processes
from homeport.node.runtime.runsc import RunscRuntime
from homeport.node.trial import works

from .containers import (
    NODE_ID,
    PREPARED,
    PREPARED_ROOT,
    Box,
    eventually,
    make_layer,
    open_box,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox-static"),
]

Check = Callable[[Box], Awaitable[None]]
InBox = Callable[[Check], None]


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_layer(tmp_path_factory.mktemp("image"))


GVISOR_CANNOT = {
    "test_process_limit": "its processes are threads of gVisor's on the host, which needs many itself",
}
"""Cases that containers of runsc do not have, and why; what they do instead is below."""


@pytest.fixture(scope="session")
def gvisor_failure(tmp_path_factory: pytest.TempPathFactory) -> str:
    return asyncio.run(works(tmp_path_factory.mktemp("trial"), "runsc")).failure


@pytest.fixture(params=["bubblewrap", "runc", "crun", "runsc", PREPARED, PREPARED_ROOT])
def tool(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name in ("runsc", PREPARED):
        failure: str = request.getfixturevalue("gvisor_failure")
        if failure:
            pytest.skip(failure)
        case = request.node.name.partition("[")[0]
        if case in GVISOR_CANNOT:
            pytest.skip(f"not under gVisor: {GVISOR_CANNOT[case]}")
    elif "bubblewrap" not in name and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def in_box(tool: str, tmp_path: Path, layer: Path) -> InBox:
    def run(check: Check) -> None:
        async def main() -> None:
            async with open_box(tool, tmp_path, layer) as box:
                await check(box)

        asyncio.run(main())
        assert find_leaks(tmp_path) == []

    return run


# --- ends -----------------------------------------------------------------------------------------


def test_ends_are_reported_exactly(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        for script, code in (
            ("true", 0),
            ("exit 7", 7),
            ("exit 137", 137),
            ("exit 255", 255),
            ("kill -9 $$", -9),
            ("kill -15 $$", -15),
            ("kill -6 $$", -6),
        ):
            result = await box.sh(script)
            assert result.exit.returncode == code, script
            assert not result.exit.oom_killed

    in_box(check)


def test_signals_reach_the_command(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        script = "trap 'exit 42' INT; touch /ready; while :; do sleep 0.01; done"
        container = await box.start("sh", "-c", script)
        ready = box.home / "uppers" / container.id / "ready"
        await eventually(ready.exists)
        container.signal(signal.SIGINT)
        assert (await container.wait()).returncode == 42
        container.signal(signal.SIGINT)  # after the end: nothing happens
        await container.remove()

        container = await box.start("sleep", "1000")
        container.signal(signal.SIGTERM)  # without a handler it dies of it
        assert (await container.wait()).returncode == -signal.SIGTERM
        await container.remove()

    in_box(check)


def test_kill_takes_everything_with_it(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        script = "(setsid sleep 1234 &); (sleep 1234 & sleep 1234) & touch /ready; sleep 1234"
        container = await box.start("sh", "-c", script)
        await eventually((box.home / "uppers" / container.id / "ready").exists)
        if box.runtime.name == "runsc":  # its processes have no pids on the host
            container.kill()
            assert (await container.wait()).returncode == -signal.SIGKILL
            return await container.remove()
        inside = os.stat(f"/proc/{container.pid}/ns/pid").st_ino
        assert len(_in_namespace(inside)) >= 4
        container.kill()
        assert (await container.wait()).returncode == -signal.SIGKILL
        assert _in_namespace(inside) in ([], [str(container.pid)])  # init may wait to be reaped
        await container.remove()
        assert _in_namespace(inside) == []
        await container.remove()  # idempotent

    in_box(check)


def test_the_end_of_the_command_is_the_end_of_the_container(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        # the child keeps the pipes open; neither the end nor their end waits for it
        result = await box.sh("(setsid sleep 1234 &); sleep 0.05; echo done; exit 3")
        assert (result.exit.returncode, result.output) == (3, "done\n")

    in_box(check)


def _in_namespace(inode: int) -> list[str]:
    found: list[str] = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                if os.stat(f"/proc/{entry}/ns/pid").st_ino == inode:
                    found.append(entry)
            except OSError:
                continue
    return found


def test_orphans_are_reaped(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        script = (
            "for i in 1 2 3; do (sh -c 'exit 0' &); done; sleep 0.2; "
            "grep -l '^State:.*zombie' /proc/[0-9]*/status | wc -l"
        )
        assert (await box.sh(script)).output.strip() == "0"

    in_box(check)


def test_what_cannot_be_started_says_so(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        with pytest.raises(ContainerStartError, match=r"no-such-program: No such file"):
            await box.start("no-such-program")
        with pytest.raises(ContainerStartError, match=r"/etc/passwd: Permission denied"):
            await box.start("/etc/passwd")
        with pytest.raises(ContainerStartError, match="no user 'nobody-here'"):
            await box.start("true", user="nobody-here")
        with pytest.raises(ContainerStartError, match="gone"):
            await box.start("true", binds=(Bind(box.home / "gone", "/x"),))
        with pytest.raises(ContainerStartError, match="missing-layer"):
            await box.start("true", layers=(box.home / "missing-layer",))
        first = await box.start("sleep", "1000")
        with pytest.raises(ContainerStartError, match="already"):
            await box.start("true", id=first.id)
        await first.remove()
        assert os.listdir(box.home / "run" / "containers") == []

    in_box(check)


# --- what the command sees ------------------------------------------------------------------------


def test_environment_directory_and_user(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        result = await box.run("env", env={"A": "b c", "EMPTY": "", "PATH": "/bin"}, workdir="/a/b")
        lines = set(result.output.splitlines())
        assert {"A=b c", "EMPTY=", "PATH=/bin", "HOME=/root"} <= lines
        assert not any(line.startswith("HOMEPORT") for line in lines)
        script = "id -u; id -g; id -G; pwd; echo $HOME"
        for user, expected in (
            ("", "0 0 0 /work /root"),
            ("worker", "1000 1001 1001 2000 /work /home/worker"),
            ("1000", "1000 1001 1001 2000 /work /home/worker"),
            ("worker:root", "1000 0 0 /work /home/worker"),
            ("4242:4343", "4242 4343 4343 /work /"),
        ):
            result = await box.sh(script, user=user, workdir="/work")
            assert result.output.split() == expected.split(), user

    in_box(check)


def test_generated_files_do_not_land_in_the_upper_directory(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        file = box.home / "file"
        file.write_text("bound\n")
        result = await box.sh(
            "hostname; cat /etc/hostname /deep/down/file; grep -c localhost /etc/hosts; "
            "ls /etc/resolv.conf; touch /tmp/mine",
            hostname="box-1",
            network="nat",
            binds=(Bind(file, "/deep/down/file"),),
            tmpfs=("/scratch/space",),
        )
        assert result.output.split() == ["box-1", "box-1", "bound", "2", "/etc/resolv.conf"]
        written = [str(p.relative_to(result.upper)) for p in sorted(result.upper.rglob("*"))]
        assert written == ["tmp", "tmp/mine"]
        assert result.upper.joinpath("tmp").stat().st_mode & 0o7777 == 0o1777

    in_box(check)


def test_writes_land_in_the_upper_directory_only(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        low, high = box.home / "low", box.home / "high"
        for place, text in ((low, "low"), (high, "high")):
            place.mkdir()
            (place / "file").write_text(text)
            (place / text).write_text(text)
        result = await box.sh(
            "cat /file; echo changed > /file; rm /low; echo new > /new",
            layers=(box.layer, low, high),
        )
        assert result.output == "high"
        assert (high / "file").read_text() == "high"
        assert sorted(os.listdir(low)) == ["file", "low"]
        assert (result.upper / "file").read_text() == "changed\n"
        assert (result.upper / "new").read_text() == "new\n"
        # the kept directory, with its whiteout, works as a layer
        again = await box.sh(
            "cat /file /new; ls /low 2>/dev/null | wc -l",
            layers=(box.layer, low, high, result.upper),
        )
        assert again.output == "changed\nnew\n0\n"
        container = await box.start("true")
        await container.wait()
        await container.remove()
        assert not (box.home / "uppers" / container.id).exists()
        assert not list((box.home / "uppers").glob("*.work"))

    in_box(check)


def test_many_layers(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        layers = [box.layer]
        for number in range(150):
            place = box.home / "a-directory-with-a-long-name-as-digests-have-them" / f"{number:064}"
            place.mkdir(parents=True)
            (place / f"file-{number}").write_text(str(number))
            (place / "top").write_text(str(number))
            layers.append(place)
        result = await box.sh("ls /file-* | wc -l; cat /top", layers=tuple(layers))
        assert result.output == "150\n149"

    in_box(check)


def test_binds_and_tmpfs(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        shared, fixed = box.home / "shared", box.home / "fixed"
        for place in (shared, fixed):
            place.mkdir()
        (shared / "sub").mkdir()
        (fixed / "data").write_text("data")
        result = await box.sh(
            "cat /fixed/data; echo x > /shared/out; echo x > /shared/sub/in-tmpfs;"
            "echo x > /fixed/data || echo refused",
            binds=(Bind(shared, "/shared", read_only=False), Bind(fixed, "/fixed")),
            tmpfs=("/shared/sub",),
        )
        assert result.output.startswith("data")
        assert result.output.endswith("refused\n")
        assert (shared / "out").read_text() == "x\n"
        assert not (shared / "sub/in-tmpfs").exists()
        assert (fixed / "data").read_text() == "data"

    in_box(check)


def test_links_of_the_image_do_not_lead_out(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        outside, image = box.home / "outside", box.home / "image"
        outside.mkdir()
        image.mkdir()
        (image / "app").symlink_to(outside)
        (image / "data").symlink_to("/real/data")
        (image / "real/data").mkdir(parents=True)
        source = box.home / "source"
        source.mkdir()
        (source / "file").write_text("here")
        result = await box.sh(
            "cat /real/data/file; pwd",
            layers=(box.layer, image),
            binds=(Bind(source, "/data"),),
            workdir=f"{outside}/work",
        )
        assert result.output == f"here{outside}/work\n"
        assert os.listdir(outside) == []

    in_box(check)


def test_output_is_complete(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        result = await box.sh("seq 1 200000; echo last >&2")
        lines = result.output.splitlines()
        assert lines[:2] == ["1", "2"]
        assert lines[-2:] == ["200000", "last"]
        assert len(lines) == 200001

    in_box(check)


# --- isolation ------------------------------------------------------------------------------------


def test_privileges_are_those_of_a_container_engine(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        status = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status"
        lines = dict(line.split(":\t") for line in (await box.sh(status)).output.splitlines())
        # gVisor takes CAP_NET_RAW away, and is itself what a filter of system calls is elsewhere
        is_gvisor = box.runtime.name == "runsc"
        wanted = "00000000a80405fb" if is_gvisor else "00000000a80425fb"
        assert lines["CapPrm"] == lines["CapEff"] == lines["CapBnd"] == wanted
        assert {lines["CapInh"], lines.get("CapAmb", "0" * 16)} == {"0" * 16}
        assert lines.get("NoNewPrivs", "1") == "1"  # gVisor does not say
        assert lines["Seccomp"] == ("0" if is_gvisor else "2")
        lines = dict(
            line.split(":\t") for line in (await box.sh(status, user="worker")).output.splitlines()
        )
        assert lines["CapPrm"] == lines["CapEff"] == "0" * 16

    in_box(check)


def test_system_calls_are_refused(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        for script in (
            "mount -t tmpfs none /tmp",
            "umount /proc",
            "unshare -n true",
            "unshare -U true",
            "nsenter -t 1 -m true",
            "hostname changed",
            "! date -s 2001-01-01 2>&1 | grep 'not permitted'",
            "echo 1 > /proc/sys/kernel/panic",
            "echo b > /proc/sysrq-trigger",
            "touch /sys/kernel/mm/x",
            "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
            # the kernel's log, which anyone who can open devices may write to
            *(f"mknod {place}/log c 1 11 && : > {place}/log" for place in ("", "/dev", "/dev/shm")),
            "ls /proc/1/root/",
            "cat /proc/1/environ",
            "test -s /proc/kcore",
            "ls /sys/firmware/*",
        ):
            if box.runtime.name == "runsc" and script in OF_GVISORS_KERNEL:
                continue
            assert (await box.sh(f"{script} 2>/dev/null")).exit.returncode != 0, script

    in_box(check)


OF_GVISORS_KERNEL = ("unshare -U true", "cat /proc/1/environ")
"""Allowed there, by a kernel that is the container's own; init has the container's environment."""


def test_the_host_is_invisible(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        result = await box.sh("ls /; ls /proc | grep -c '^[0-9]*$'; ls /sys/class/net; ls /home")
        assert str(box.home) not in result.output
        names = result.output.split()
        assert "work" not in names
        assert int(names[names.index("var") + 1]) <= 6  # init, the shell and its children
        result = await box.sh("ls /dev | sort | tr '\\n' ' '; ls /dev/pts; echo x > /dev/null")
        extra = set(result.output.split()) - {
            *("core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr"),
            *("stdin", "stdout", "tty", "urandom", "zero", "console"),
        }
        assert extra == ({"fuse", "net"} if box.runtime.name == "runsc" else set())  # gVisor's own
        devices = "head -c 1 /dev/zero /dev/urandom /dev/random >/dev/null && echo x >/dev/full"
        assert "No space left" in (await box.sh(devices)).output
        assert (await box.sh("touch /dev/shm/a /tmp/b", user="worker")).exit.returncode == 0
        assert (await box.sh("read line", user="worker")).exit.returncode == 1  # stdin is empty

    in_box(check)


# --- limits ---------------------------------------------------------------------------------------


def test_memory_limit(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        result = await box.run("tail", "/dev/zero", limits=Limits(memory_mb=32))
        assert result.exit.oom_killed
        assert result.exit.returncode == -signal.SIGKILL
        assert result.exit.memory_limit_mb == 32
        result = await box.sh("kill -9 $$", limits=Limits(memory_mb=32))
        assert not result.exit.oom_killed

    in_box(check)


def test_process_limit(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        script = "for i in $(seq 1 40); do sleep 100 & done; echo unreachable"
        result = await box.sh(script, limits=Limits(pids=20))
        assert result.exit.returncode != 0
        assert "unreachable" not in result.output

    in_box(check)


def test_processor_limits_are_set(in_box: InBox, tmp_path: Path) -> None:
    async def check(box: Box) -> None:
        limits = Limits(milli_cpu=500, milli_cpu_max=1500)
        container = await box.start("sleep", "1000", limits=limits)
        assert isinstance(container, RunningContainer)
        group = container.cgroup
        assert group is not None
        assert container.pid in group.processes()
        shares, weight = group.paths()[0] / "cpu.shares", group.paths()[-1] / "cpu.weight"
        assert int((shares if shares.exists() else weight).read_text()) in (512, 50)
        quota, both = group.paths()[0] / "cpu.cfs_quota_us", group.paths()[-1] / "cpu.max"
        text = quota.read_text() if quota.exists() else both.read_text()
        assert text.split()[0] == "150000"
        await container.remove()
        assert not any(path.exists() for path in group.paths())

    in_box(check)


# --- life -----------------------------------------------------------------------------------------


def test_fifty_at_once(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        async def one(number: int) -> str:
            script = f"echo {number}; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ' | sort"
            return (await box.sh(script, network="nat")).output

        outputs = await asyncio.gather(*(one(number) for number in range(50)))
        # Under gVisor an interface for sidecars is there from the start.
        interfaces = "eth0\nlo\npeers\n" if box.runtime.name == "runsc" else "eth0\nlo\n"
        assert outputs == [f"{number}\n{interfaces}" for number in range(50)]

    in_box(check)


def test_a_start_that_is_given_up_leaves_nothing(in_box: InBox, tmp_path: Path) -> None:
    async def check(box: Box) -> None:
        for after_ms in (0, 2, 5, 10, 15, 20, 30, 50, 80):
            start = asyncio.ensure_future(box.start("sleep", "1000", network="nat"))
            await asyncio.sleep(after_ms / 1000)
            start.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await start).remove()
            left = [leak for leak in find_leaks(tmp_path) if "process" in leak]
            waiting = box.waiting()
            assert not [leak for leak in left if not any(name in leak for name in waiting)]

    in_box(check)


_NODE = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from contract.containers import open_box
from homeport.kernel.resources import Limits

async def main():
    async with open_box(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])) as box:
        for _ in range(2):
            await box.start("sleep", "1000", network="nat", limits=Limits(memory_mb=64))
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_killed_node_leaves_containers_that_sweep_removes(
    tool: str, tmp_path: Path, layer: Path
) -> None:
    tests = str(Path(__file__).parents[1])
    arguments = [tool, str(tmp_path), str(layer), tests]
    node = subprocess.Popen(
        [sys.executable, "-c", _NODE, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    with node.stdout:
        assert node.stdout.readline() == "ready\n"
    node.kill()
    node.wait()
    tag = network_tag(NODE_ID, tmp_path / "run")
    leaks = find_leaks(tmp_path)
    assert sum("container process" in leak for leak in leaks) >= 2  # they live on
    assert any("control group" in leak for leak in leaks)
    assert len(interface_names(f"hpv{tag}")) >= 2

    async def restart() -> None:
        async with open_box(tool, tmp_path, layer) as box:
            alive = await box.start("sleep", "1000", id="ta-new", network="nat")
            assert await box.runtime.sweep() == 2
            assert (await box.sh("ls /sys/class/net", id="ta-other", network="nat")).output
            assert [path.name for path in (box.home / "run/containers").iterdir()] == ["ta-new"]
            alive.signal(signal.SIGTERM)
            assert (await alive.wait()).returncode == -signal.SIGTERM
            assert await box.runtime.sweep() == 0

    asyncio.run(restart())
    assert find_leaks(tmp_path) == []
    assert not [path for path in (tmp_path / "uppers").iterdir() if path.name != "ta-other"]


def test_unknown_runtimes_are_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="no runtime 'docker'"):
        asyncio.run(create_runtime("docker", tmp_path, NODE_ID))


def test_the_command_reads_what_it_is_given(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        read, write = os.pipe()
        os.write(write, b"one\ntwo\n")
        os.close(write)
        try:
            found = await box.sh("cat; echo end", stdin_fd=read)
        finally:
            os.close(read)
        assert found.output == "one\ntwo\nend\n"
        assert (await box.sh("cat; echo end")).output == "end\n"

    in_box(check)


def test_the_command_has_a_terminal_if_it_is_given_one(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        ours, theirs = os.openpty()
        spec = box.spec(
            "sh", "-c", "echo on >/dev/tty; cat", stdin_fd=theirs, stdout_fd=theirs,
            stderr_fd=theirs,
        )  # fmt: skip
        try:
            container = await box.begin(spec)
        finally:
            os.close(theirs)
        os.write(ours, b"\x03")  # interrupts who has the terminal
        exit = await container.wait()
        assert exit.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
        output = b""
        with contextlib.suppress(OSError):
            while data := os.read(ours, 1000):
                output += data
        assert b"on" in output or exit.returncode == -signal.SIGINT
        os.close(ours)
        await container.remove()

    in_box(check)


def test_without_a_command_it_is_there_until_it_is_killed(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        container = await box.start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await container.wait()
        container.kill()
        assert (await container.wait()).returncode == -signal.SIGKILL
        await container.remove()

    in_box(check)


def test_a_frozen_container_stands_still(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        spec = box.spec("sh", "-c", "while :; do echo >> /ticks; sleep 0.01; done")
        container = await box.begin(spec)
        ticks = spec.upper / "ticks"
        await eventually(lambda: ticks.exists())
        await container.freeze()
        before = ticks.stat().st_size
        await asyncio.sleep(0.1)
        assert ticks.stat().st_size == before
        await container.thaw()
        await eventually(lambda: ticks.stat().st_size > before)
        await container.freeze()
        container.kill()
        assert (await container.wait()).returncode == -signal.SIGKILL
        await container.remove()

    in_box(check)


# --- further programs in a container --------------------------------------------------------------


async def execute(container: Container, *command: str, **changes: object) -> tuple[int, str]:
    """Run a program to its end: its return code and output."""
    read, write = os.pipe()
    try:
        spec = ExecSpec(command, stdout_fd=write, stderr_fd=write, **changes)  # type: ignore[arg-type]
        process = await container.exec(spec)
    finally:
        os.close(write)
    output = await asyncio.to_thread(lambda: os.fdopen(read, "rb").read().decode())
    return await process.wait(), output


def groups_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def test_exec_is_in_the_container_with_its_rights(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; id; hostname; pwd"
        own = await box.sh(script, user="worker", hostname="box", workdir="/bin")
        container = await box.start("sleep", "1000", user="worker", hostname="box", workdir="/bin")
        assert await execute(container, "sh", "-c", script) == (0, own.output)
        if box.runtime.name == "runsc":  # what /proc says is gVisor's own
            _, fds = await execute(container, "sh", "-c", "ls /proc/self/fd")
            assert set(fds.split()) <= {"0", "1", "2", "3"}
            return await container.remove()
        names = ("mnt", "pid", "ipc", "uts", "net")
        script = f"for name in {' '.join(names)}; do readlink /proc/self/ns/$name; done"
        _, seen = await execute(container, "sh", "-c", script)
        assert seen.split() == [os.readlink(f"/proc/{container.pid}/ns/{name}") for name in names]
        # its control groups, and so its limits
        _, groups = await execute(container, "cat", "/proc/self/cgroup")
        assert groups == groups_of(container.pid)
        # nothing of the host is open
        _, fds = await execute(container, "sh", "-c", "ls /proc/self/fd")
        assert set(fds.split()) <= {"0", "1", "2", "3"}
        await container.remove()

    in_box(check)


def test_exec_ends_are_reported_exactly(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        container = await box.start("sleep", "1000", env={"A": "1"})
        for script, code in (("exit 7", 7), ("kill -9 $$", -9), ("kill -15 $$", -15)):
            assert (await execute(container, "sh", "-c", script))[0] == code
        assert await execute(container, "sh", "-c", "echo $A$B", env={"B": "2"}) == (0, "12\n")
        with pytest.raises(ExecError, match="no-such"):
            await container.exec(ExecSpec(("no-such",)))
        with pytest.raises(ExecError, match="/nowhere"):
            await container.exec(ExecSpec(("true",), workdir="/nowhere"))
        with pytest.raises(ExecError):  # not a way to a directory of the host
            await container.exec(ExecSpec(("true",), workdir="/proc/self/fd/6"))
        running = await container.exec(ExecSpec(("sh", "-c", "sleep 1000 & wait")))
        running.kill()
        assert await running.wait() == -signal.SIGKILL
        last = await container.exec(ExecSpec(("sleep", "1000")))
        await container.remove()
        assert await last.wait() == -signal.SIGKILL
        with pytest.raises(ExecError):
            await container.exec(ExecSpec(("true",)))

    in_box(check)


def test_exec_on_a_terminal(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        container = await box.start("sleep", "1000", user="worker")
        # gVisor of that release opens no /dev/tty: the standard streams are the terminal there.
        source = "" if box.runtime.name == "runsc" else " </dev/tty"
        script = f"tty; stty size; read line{source}; echo got $line"
        process = await container.exec(ExecSpec(("sh", "-c", script), terminal=(33, 99)))
        os.write(process.terminal_fd, b"word\n")
        assert await process.wait() == 0
        output = b""
        with contextlib.suppress(OSError):
            while data := os.read(process.terminal_fd, 4096):
                output += data
        os.close(process.terminal_fd)
        words = output.decode().split()
        assert any(word.startswith("/dev/pts/") for word in words)
        assert [word for word in words if word in ("33", "99")] == ["33", "99"]
        assert words[-2:] == ["got", "word"]
        await container.remove()

    in_box(check)


def test_files_are_the_containers_own(in_box: InBox, tmp_path: Path) -> None:
    secret = tmp_path / "secret-of-the-host"
    secret.write_text("host")

    async def check(box: Box) -> None:
        links = f"ln -s {secret} /tmp/out; ln -s /proc/self/root{secret} /tmp/around; echo mine > /tmp/in"
        container = await box.start("sh", "-c", f"{links}; chmod 600 /etc/passwd; sleep 1000")
        await eventually((box.home / "uppers" / container.id / "etc/passwd").exists)
        tools = FileTools()

        async def read(path: str) -> tuple[int, str]:
            worker = await tools.worker(container)
            out_read, out_write = os.pipe()
            null = os.open("/dev/null", os.O_RDWR)
            code = await worker.send({"ReadFile": {"path": path}}, [null, out_write, null])
            os.close(out_write)
            os.close(null)
            return code, os.fdopen(out_read, "rb").read().decode()

        assert await read("/tmp/in") == (0, "mine\n")
        assert (await read("/etc/passwd"))[0] == 0
        for path in (str(secret), "/tmp/out", "/tmp/around", f"/proc/1/root{secret}"):
            assert await read(path) == (1, ""), path
        tools.close()
        await container.remove()

        container = await box.start("sleep", "1000", user="worker")
        assert (await read("/etc/passwd"))[0] == 0
        assert (await read("/proc/1/environ")) == (1, "")  # its user's rights, no more
        await container.remove()
        with pytest.raises(ExecError):
            await tools.worker(container)
        tools.close()

    in_box(check)


# --- images in a running container ----------------------------------------------------------------


def text_of(directory: int | Path, name: str) -> str:
    folder = directory if isinstance(directory, Path) else Path(f"/proc/self/fd/{directory}")
    return (folder / name).read_text()


def image_tree(box: Box, target: str, *layers: Path) -> ImageTree:
    box.count += 1
    folder = box.home / f"image-{box.count}"
    for name in ("upper", "work", "empty"):
        (folder / name).mkdir(parents=True)
    return ImageTree(target, layers or (folder / "empty",), folder / "upper", folder / "work")


def test_images_come_and_go_while_it_runs(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        container = await box.start("sleep", "1000")
        tree = image_tree(box, "/made/here", box.layer)
        mounted = await container.mount_image(tree)
        assert mounted.path == "/made/here"
        script = (
            "cat /made/here/etc/group | wc -l; echo new > /made/here/file; rm /made/here/etc/group"
        )
        assert await execute(container, "sh", "-c", script) == (0, "3\n")
        assert (tree.upper / "file").read_text() == "new\n"
        assert (box.layer / "etc/group").exists()
        holder = await container.exec(ExecSpec(("sleep", "1000"), workdir="/made/here"))
        assert not await container.unmount_image(mounted)
        holder.kill()
        await holder.wait()
        assert await container.unmount_image(mounted)
        assert await execute(container, "ls", "/made/here") == (0, "")
        assert await container.unmount_image(mounted)  # nothing there, and no error
        await container.remove()

    in_box(check)


def test_images_are_mounted_in_the_container_and_nothing_else_is_unmounted(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        container = await box.start("sleep", "1000")
        script = "mkdir /real; ln -s ../../../../../../real /link; echo outside > /file"
        assert (await execute(container, "sh", "-c", script))[0] == 0
        mounted = await container.mount_image(image_tree(box, "/link"))
        assert mounted.path == "/real"
        with pytest.raises(ContainerStartError):
            await container.mount_image(image_tree(box, "/file"))
        for script in ("rm /link", "ln -s /proc/sys /link"):
            assert (await execute(container, "sh", "-c", script))[0] == 0
        # something else in its place: a path of the container is not believed
        elsewhere = MountedImage("/proc/sys", mounted.device)
        assert await container.unmount_image(elsewhere)
        refused, _ = await execute(container, "sh", "-c", "echo 1 > /proc/sys/kernel/core_pattern")
        assert refused != 0
        assert await container.unmount_image(mounted)
        await container.remove()

    in_box(check)


def test_directories_are_opened_as_the_container_sees_them(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        container = await box.start("sleep", "1000")
        script = "mkdir /own; echo mine > /own/file; ln -s ../../../../../../etc /own/link"
        assert (await execute(container, "sh", "-c", script))[0] == 0
        directory = await container.open_directory("/own")
        assert sorted(os.listdir(directory)) == ["file", "link"]
        os.close(directory)
        directory = await container.open_directory("/own/link")
        assert "group" in os.listdir(directory)
        assert text_of(directory, "group") == text_of(box.layer, "etc/group")
        os.close(directory)
        with pytest.raises(NotADirectoryError):
            await container.open_directory("/own/file")
        with pytest.raises(FileNotFoundError):
            await container.open_directory("/none")
        await container.remove()

    in_box(check)


def test_what_it_uses_is_measured(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        limits = Limits(memory_mb=256, pids=100)
        container = await box.start("sleep", "1000", limits=limits)
        before, _ = container.usage()
        script = "n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done"
        assert (await execute(container, "sh", "-c", script))[0] == 0
        after, memory = container.usage()
        assert after > before
        assert 0 < memory < 256 * 1024 * 1024
        await container.remove()

    in_box(check)


def test_two_containers_are_linked_by_name(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        one, other = await box.start("sleep", "1000"), await box.start("sleep", "1000")
        third = await box.start("sleep", "1000")
        await connect(one, "one", other, "other", 1)
        # busybox's nc may end before it has heard the other: both try until it has.
        serve = "while true; do echo hello | nc -l -p 80; done"
        listening = await other.exec(ExecSpec(("sh", "-c", serve)))
        script = "until echo | nc other 80 2>&1 | grep hello; do sleep 0.1; done"
        assert await execute(one, "sh", "-c", script) == (0, "hello\n")
        assert "one" in (await execute(other, "cat", "/etc/hosts"))[1]
        stranger = f"nc -w 1 {other.peer_address or '169.254.0.2'} 80"
        assert (await execute(third, "sh", "-c", stranger))[0] != 0
        # a name once more: one line, the new address; no link is followed
        await connect(one, "one", other, "other", 2)
        hosts = (await execute(one, "cat", "/etc/hosts"))[1]
        there = other.peer_address or "169.254.0.4"
        assert [line.split()[0] for line in hosts.splitlines() if "other" in line] == [there]
        script = "rm /etc/hosts; ln -s /etc/group /etc/hosts"
        assert (await execute(one, "sh", "-c", script))[0] == 0
        with pytest.raises(OSError, match="symbolic links"):
            await connect(one, "one", third, "third", 3)
        for container in (one, other, third):
            await container.remove()
        await listening.wait()

    in_box(check)


def test_what_listens_in_it_is_reached(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        loop = asyncio.get_running_loop()
        for network in ("none", "nat"):
            container = await box.start("sleep", "1000", network=network)
            assert not await container.is_listening(8123)
            with pytest.raises(ConnectionRefusedError):
                await container.connect(8123)
            server = ExecSpec(("nc", "-ll", "-p", "8123", "-e", "cat"))
            listening = await container.exec(server)
            async with asyncio.timeout(30):
                while not await container.is_listening(8123):
                    await asyncio.sleep(0.01)
            connection = await container.connect(8123)
            sent = os.urandom(300_000)
            sending = asyncio.ensure_future(loop.sock_sendall(connection, sent))
            received = b""
            while len(received) < len(sent):
                received += await loop.sock_recv(connection, 65536)
            await sending
            assert received == sent
            connection.close()
            listening.kill()
            await listening.wait()
            await container.remove()

    in_box(check)


def test_files_move_between_directories(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        # a link is of one file system, so these are
        script = "ls -A /tmp | wc -l; echo x >/tmp/a && ln /tmp/a /root/a && ln /root/a /var/tmp/a"
        result = await box.sh(f"{script} && cat /var/tmp/a")
        assert (result.exit.returncode, result.output) == (0, "0\nx\n")
        for changes in ({"tmpfs": ("/tmp/in",)}, {"workdir": "/tmp/work"}):
            result = await box.sh("pwd; echo x >/tmp/in/a || echo y >/tmp/b", **changes)
            assert result.exit.returncode == 0
        assert (result.upper / "tmp/b").read_text() == "y\n"

    in_box(check)


def test_programs_with_long_arguments_and_many_at_once(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        container = await box.start("sleep", "1000")
        text = "x" * 100_000
        assert await execute(
            container, "sh", "-c", "echo ${#1} ${#A}", "sh", text, env={"A": text}
        ) == (
            0,
            "100000 100000\n",
        )
        with pytest.raises(ExecError, match="rgument list too long"):
            await container.exec(ExecSpec(("true", *["x" * 100_000] * 40)))
        done = await asyncio.gather(
            *(execute(container, "sh", "-c", f"echo {n}; exit {n}") for n in range(40))
        )
        assert done == [(n, f"{n}\n") for n in range(40)]
        await container.remove()

    in_box(check)


def test_a_checkpoint_is_gone_on_with(gvisor_failure: str, tmp_path: Path, layer: Path) -> None:
    if gvisor_failure:
        pytest.skip(gvisor_failure)

    async def main() -> None:
        async with open_box("runsc", tmp_path, layer) as box:
            script = "read a; echo got $a; read b; echo $a $b; exit 5"
            first, said = await talking(box, script)
            assert await said("one") == "got one\n"
            beside = "while sleep 0.01; do date > /now.new; mv /now.new /now; done"
            await first.exec(ExecSpec(("sh", "-c", beside)))
            upper = box.home / "uppers" / first.id
            await eventually((upper / "now").exists)
            image = tmp_path / "image"
            image.mkdir()
            await first.checkpoint(image)
            await first.wait()
            await first.remove(keep_upper=True)
            with pytest.raises(ContainerEndedError):
                await first.exec(ExecSpec(("true",)))
            for _ in range(2):
                layers = (layer, upper)
                again, said = await talking(box, script, layers=layers, checkpoint=image)
                assert (
                    await execute(again, "sh", "-c", "rm /now; until [ -e /now ]; do :; done")
                ) == (
                    0,
                    "",
                )
                assert await said("two") == "one two\n"
                assert (await again.wait()).returncode == 5
                await again.remove()
            plain = await box.start("sleep", "1000")
            with pytest.raises(RuntimeUnavailableError):
                await plain.checkpoint(image)

    asyncio.run(main())
    assert find_leaks(tmp_path) == []


async def talking(
    box: Box, script: str, **more: Any
) -> tuple[Container, Callable[[str], Awaitable[str]]]:
    """A container for checkpoints, and what it answers to a line."""
    stdin, ours = os.pipe()
    answers, stdout = os.pipe()
    try:
        container = await box.start(
            "sh", "-c", script, can_checkpoint=True, stdin_fd=stdin, stdout_fd=stdout, **more
        )
    finally:
        os.close(stdin)
        os.close(stdout)

    async def say(word: str) -> str:
        os.write(ours, f"{word}\n".encode())
        return (await asyncio.to_thread(os.read, answers, 100)).decode()

    return container, say


def test_only_gvisor_has_checkpoints(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        if box.runtime.name != "runsc":
            with pytest.raises(RuntimeUnavailableError, match="gVisor"):
                await box.start("true", can_checkpoint=True)

    in_box(check)


def test_gvisors_containers_outlive_a_stopped_keeper_no_longer_than_asked(
    gvisor_failure: str, tmp_path: Path, layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gvisor_failure:
        pytest.skip(gvisor_failure)
    monkeypatch.setattr(keeper, "_TIMEOUT_S", 1.0)

    async def main() -> None:
        async with open_box("runsc", tmp_path, layer) as box:
            container = await box.start("sleep", "1000")
            running = await container.exec(ExecSpec(("sh", "-c", "kill -STOP 1; sleep 1000")))
            assert "does not answer" in await refusal(container)
            with pytest.raises(TimeoutError):
                await container.connect(80)
            container.kill()
            assert (await container.wait()).returncode == -signal.SIGKILL
            assert await running.wait() == -signal.SIGKILL

    asyncio.run(main())


async def refusal(container: Container) -> str:
    """Start programs until one is refused: what is said then."""
    while True:
        try:
            await container.exec(ExecSpec(("true",)))
        except ExecError as error:
            return str(error)


# --- root file systems that wait (roots.py) ----------------------------------------------------------


def waiting_roots(box: Box) -> list[Path]:
    return [*(box.home / "run/roots").iterdir()]


def test_root_file_systems_wait_for_containers_of_the_same_layers(in_box: InBox) -> None:
    async def check(box: Box) -> None:
        script = "cat /etc/hostname; ls /mine /data; touch /mine"
        data = box.home / "data"
        data.mkdir()
        (data / "file").touch()
        binds = (Bind(data, "/data"),)
        used = box.runtime.roots.used
        for number in range(3):
            result = await box.sh(f"{script} 2>&1", hostname=f"h{number}", is_repeated=True)
            assert f"h{number}\n" in result.output
            assert result.output.count("No such file") == 2
            assert (result.upper / "mine").exists()
            await box.runtime.prepare_root(box.spec("true"))
        assert box.runtime.roots.used >= used + 2
        # what is mounted elsewhere is something else
        used = box.runtime.roots.used
        result = await box.sh(script, binds=binds, is_repeated=True, hostname="data")
        assert "file" in result.output

    in_box(check)


def test_a_root_file_system_whose_layers_were_replaced_is_not_used(
    tmp_path: Path, layer: Path
) -> None:
    async def main() -> None:
        async with open_box("bubblewrap", tmp_path, layer) as box:
            image = box.home / "image"
            layers = (box.layer, image)
            for text in ("first", "second"):
                image.mkdir()
                (image / "file").write_text(text)
                found = await box.sh("cat /file", layers=layers, is_repeated=True)
                assert found.output == text
                await box.runtime.prepare_root(box.spec("true", layers=layers))
                assert waiting_roots(box)
                shutil.rmtree(image)
            assert box.runtime.roots.used == 0

    asyncio.run(main())
    assert find_leaks(tmp_path) == []


def test_a_burst_has_as_many_root_file_systems_ready_the_next_time(
    tmp_path: Path, layer: Path
) -> None:
    async def main() -> None:
        async with open_box("bubblewrap", tmp_path, layer) as box:
            await asyncio.gather(*(box.sh("true", is_repeated=True) for _ in range(8)))
            # more than will be used: of the last one there is only the directory, it may be
            await eventually(lambda: len(waiting_roots(box)) > 8)
            used = box.runtime.roots.used
            await asyncio.gather(*(box.sh("true", is_repeated=True) for _ in range(8)))
            assert box.runtime.roots.used == used + 8

    asyncio.run(main())
    assert find_leaks(tmp_path) == []


def test_writes_may_be_on_another_disk_than_what_waits(tmp_path: Path, layer: Path) -> None:
    async def main() -> None:
        async with open_box("bubblewrap", tmp_path, layer) as box:
            await box.runtime.prepare_root(box.spec("true"))
            result = await box.sh("touch /mine; cat /etc/hostname", is_repeated=True, hostname="a")
            assert result.output == "a\n"
            assert (result.upper / "mine").exists()
            assert box.runtime.roots.used == 0

    uppers = tmp_path / "uppers"
    uppers.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "uppers", str(uppers)], check=True)
    try:
        asyncio.run(main())
    finally:
        subprocess.run(["umount", str(uppers)], check=True)
    assert find_leaks(tmp_path) == []


def test_on_older_kernels_overlays_are_mounted_the_older_way(
    tmp_path: Path, layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> int:
        raise OSError(errno.EINVAL, "fsconfig: lowerdir+")

    monkeypatch.setattr("homeport.node.runtime.overlay._new", unknown)

    async def main() -> None:
        async with open_box(PREPARED_ROOT, tmp_path, layer) as box:
            below = [box.home / "first", box.home / "second"]
            for place in below:
                place.mkdir()
                (place / place.name).touch()
            data = Bind(box.home / "first", "/data")
            upper, work = box.home / "written", box.home / "work"
            for place in (upper, work):
                place.mkdir()
            volume = Overlay("/data", "", tuple(below), upper, work)
            result = await box.sh(
                "ls / /data | grep -E 'first|second'; touch /mine /data/mine",
                layers=(box.layer, *below),
                binds=(data,),
                overlays=(volume,),
            )
            assert result.output.split() == ["first", "second"] * 2
            assert (result.upper / "mine").exists()
            assert (upper / "mine").exists()

    asyncio.run(main())
    assert find_leaks(tmp_path) == []


def test_root_file_systems_that_a_killed_node_left_are_removed(tmp_path: Path, layer: Path) -> None:
    async def main() -> None:
        async with open_box("bubblewrap", tmp_path, layer) as box:
            await box.runtime.prepare_root(box.spec("true"))
            (own,) = waiting_roots(box)
            left = own.with_name("0123456789abcdef-0")
            (left / "upper").mkdir(parents=True)
            (left / "work/work").mkdir(parents=True, mode=0)
            await box.runtime.sweep()
            assert waiting_roots(box) == [own]
            assert (await box.sh("true", is_repeated=True)).exit.returncode == 0
            assert box.runtime.roots.used == 1

    asyncio.run(main())
    assert not (tmp_path / "run/roots").exists()


# --- containers that wait (prepared.py) --------------------------------------------------------------

_WAITING_NODE = """
import asyncio, sys
from pathlib import Path

sys.path.insert(0, sys.argv[3])
from contract.containers import PREPARED, open_box

async def main():
    async with open_box(PREPARED, Path(sys.argv[1]), Path(sys.argv[2])) as box:
        await box.runtime.prepare("nat")
        print(*box.waiting(), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def waiting_processes(name: str) -> list[str]:
    return [found for found in find_processes(OUTER_PREFIX).values() if found.endswith(name)]


def test_what_waits_ends_with_its_node(gvisor_failure: str, tmp_path: Path, layer: Path) -> None:
    if gvisor_failure:
        pytest.skip(gvisor_failure)
    tests = str(Path(__file__).parents[1])
    arguments = [sys.executable, "-c", _WAITING_NODE, str(tmp_path), str(layer), tests]
    node = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    with node.stdout:
        name = node.stdout.readline().strip()
    assert waiting_processes(name)
    node.kill()
    node.wait()

    async def main() -> None:
        await eventually(lambda: not waiting_processes(name))
        async with open_box("runsc", tmp_path, layer) as box:
            assert await box.runtime.sweep() == 0
            assert find_leaks(tmp_path) != []  # the network that waits
            assert [*(box.home / "run/prepared").iterdir()] == []
            assert [*(box.home / "run/runsc").iterdir()] == []

    asyncio.run(main())
    assert find_leaks(tmp_path) == []


def test_one_that_ended_while_it_waited_is_replaced(
    gvisor_failure: str, tmp_path: Path, layer: Path
) -> None:
    if gvisor_failure:
        pytest.skip(gvisor_failure)

    async def main() -> None:
        async with open_box(PREPARED, tmp_path, layer) as box:
            runtime = box.runtime
            assert isinstance(runtime, RunscRuntime)
            await runtime.prepare("none")
            (first,) = runtime.waiting
            (pid,) = [pid for pid, name in find_processes(OUTER_PREFIX).items() if first in name]
            os.kill(pid, signal.SIGKILL)
            # whether that has been noticed or not: it starts
            container = await runtime.start(box.spec("sleep", "1000"))
            assert await execute(container, "echo", "here") == (0, "here\n")
            assert runtime.adopted == 0
            await eventually(lambda: first not in runtime.waiting)
            assert (await box.sh("echo there")).output == "there\n"
            assert runtime.adopted == 1

    asyncio.run(main())
    assert find_leaks(tmp_path) == []


def test_for_checkpoints_none_is_used_that_waits(
    gvisor_failure: str, tmp_path: Path, layer: Path
) -> None:
    if gvisor_failure:
        pytest.skip(gvisor_failure)

    async def main() -> None:
        async with open_box(PREPARED, tmp_path, layer) as box:
            runtime = box.runtime
            assert isinstance(runtime, RunscRuntime)
            await runtime.prepare("none")
            await runtime.start(box.spec("sleep", "1000", can_checkpoint=True))
            await runtime.start(box.spec("true", *["x" * 100_000] * 10))
            assert runtime.adopted == 0

    asyncio.run(main())
    assert find_leaks(tmp_path) == []
