"""Containers by gVisor's ``runsc``: a kernel of their own, in a process of the host.

Nobody outside can join such a container's processes: its first one, the keeper, starts further
ones and makes connections (``keeper.py``). Its files are a tree of mounts on the host, as for the
other runtimes; ``runsc``'s gofer process holds it, and what is mounted there while the container
runs shows inside, since every path is looked up on the host anew (``--file-access=shared``).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import termios
import time
import tty
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from homeport.node.cgroups import Cgroup, CgroupProvider
from homeport.node.network import Lease, NetworkProvider, in_netns
from homeport.node.peers import inner_link
from homeport.node.runtime import linux
from homeport.node.runtime.arguments import (
    mount_plan,
    working_directory,
)
from homeport.node.runtime.base import StagedRuntime
from homeport.node.runtime.bundle import bundle_config
from homeport.node.runtime.container import RunningContainer
from homeport.node.runtime.enter import Place, look_up
from homeport.node.runtime.keeper import Keeper
from homeport.node.runtime.launch import (
    CONTROL_FD,
    ERR_FD,
    FIRST_FREE_FD,
    IN_FD,
    INIT_PATH,
    OUT_FD,
    Invocation,
    Keep,
    Launch,
)
from homeport.node.runtime.port import (
    CheckpointError,
    ContainerEndedError,
    ContainerSpec,
    ContainerStartError,
    ExecSpec,
    Process,
    RuntimeUnavailableError,
)
from homeport.node.runtime.users import User, resolve_user

_OLDEST: Final = 20240101
"""Release date from which on it can pass descriptors and executes programs from them."""
_KNOWS_LINUX_6_11: Final = 20240901
"""Older ones take every network namespace of a newer kernel for the host's."""
_OWN_MEMORY_MB: Final = 96
"""What gVisor's own processes need beside the container's."""
_OWN_PIDS: Final = 512
"""Threads of gVisor's own processes on the host."""
_TMP: Final = "/tmp"  # noqa: S108
_STARTING: Final = f"{_TMP}/.homeport-starting"
_GOFER: Final = b"runsc-gofer"
_DELETED: Final = re.compile(r'gofer\.dentry\("([^"]*)"\)\.beforeSave: deleted')
_PASSED: Final = (CONTROL_FD, IN_FD, OUT_FD, ERR_FD)
_LOG_FD: Final = FIRST_FREE_FD + 1
_WAKE_S: Final = 60.0
_RESTORE_S: Final = 300.0
_LOOK_S: Final = 0.003
_INSTALL: Final = (
    "install a release of 2024 or newer: gvisor.dev/docs/user_guide/install, or Debian's package "
    "(on Debian 12 from backports: apt-get install -t bookworm-backports runsc)"
)


class RunscContainer(RunningContainer):
    """A container whose processes its keeper starts."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        assert self._control is not None
        self._keeper = Keeper(self._control, self.pid)
        self._tool: list[str] = []
        self._tool_name = ""
        self._peer_address = ""

    def use(self, tool: list[str], name: str, peer_address: str) -> None:
        """How to call ``runsc`` about it, what it is called there, and its address for others."""
        self._tool, self._tool_name = tool, name
        self._peer_address = peer_address

    @property
    def peer_address(self) -> str:
        return self._peer_address

    async def exec(self, spec: ExecSpec) -> Process:
        env, workdir = self._surroundings(spec)
        return await self._keeper.exec(spec, env, workdir)

    async def connect(self, port: int) -> socket.socket:
        return await self._keeper.connect(port)

    async def is_listening(self, port: int) -> bool:
        """By a connection, which is closed at once."""
        try:
            (await self._keeper.connect(port)).close()
        except OSError:
            return False
        return True

    def signal(self, number: int) -> None:
        if not self._ended.done():
            self._keeper.send("s", int(number))

    def kill(self) -> None:
        """All processes of gVisor: those outside may be held, and would not see the others end."""
        if not self._ended.done():
            super().kill()
            outer = () if self._reaped.done() else (self._outer_fd,)
            for fd in (self._files_fd, *outer):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)

    async def checkpoint(self, directory: Path) -> None:
        if not self._spec.can_checkpoint:
            raise RuntimeUnavailableError("the container was not started for checkpoints")
        try:
            await self._keeper.let_go()
        except ContainerEndedError as error:
            raise CheckpointError("the container has ended") from error
        except (OSError, TimeoutError) as error:
            self.kill()
            raise CheckpointError(f"the container did not let go of the host: {error}") from error
        try:
            words = await self._write_checkpoint(directory)
        except BaseException:
            self.kill()
            raise
        if words is not None:
            self.kill()
            raise CheckpointError(words or "runsc cannot save it and does not say why")

    async def _write_checkpoint(self, directory: Path) -> str | None:
        """What ``runsc`` says if it fails."""
        process = await asyncio.create_subprocess_exec(
            *(*self._tool, "checkpoint", "--compression=none"),
            *(f"--image-path={directory}", self._tool_name),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        return None if process.returncode == 0 else _first_words(said.decode(errors="replace"))

    def _files_place(self) -> Place:
        try:
            if self._place is None:
                place = look_up(self._files_pid, self._files_fd, self._user)
                namespaces = place.namespaces & linux.CLONE_NEWNS
                self._place = replace(place, namespaces=namespaces, root_pid=self._files_pid)
        except OSError as error:
            raise ContainerEndedError() from error
        return self._place

    def _returncode(self) -> int:
        return self._keeper.returncode

    def _on_end(self) -> None:
        self._keeper.close()
        super()._on_end()


class RunscRuntime(StagedRuntime):
    """A kernel in user space for every container; root in it is nobody's root.

    Limits are our own control groups, with room for gVisor itself; devices and kernel interfaces
    are gVisor's own, so nothing has to be masked.
    """

    init_program = "keeper"
    container_type = RunscContainer
    has_checkpoints = True

    def __init__(self, run_dir: Path, network: NetworkProvider, cgroups: CgroupProvider) -> None:
        path = shutil.which("runsc")
        if path is None:
            raise RuntimeUnavailableError(f"there is no runsc program; {_INSTALL}")
        self._binary = path
        self._hides_settings = _needs_hidden_settings(_release(path))
        self._state = run_dir.absolute() / "runsc"
        self._links = itertools.count()
        if not cgroups.available():
            raise RuntimeUnavailableError(
                "runsc needs control groups, and there are none in /sys/fs/cgroup: mount them "
                "(mount -t cgroup2 none /sys/fs/cgroup)"
            )
        super().__init__(run_dir, network, cgroups)
        self._state.mkdir(mode=0o700, exist_ok=True)

    @property
    def name(self) -> str:
        return "runsc"

    @property
    def keeps_control(self) -> bool:
        return True

    async def close(self) -> None:
        await super().close()
        shutil.rmtree(self._state, ignore_errors=True)

    @contextlib.contextmanager
    def invocation(self, launch: Launch, keep: Keep) -> Generator[Invocation]:
        spec = launch.spec
        with self._stage.root(launch.lowers(), spec.upper, launch.work) as root:
            user = launch.user = resolve_user(root, spec.user)
            workdir = working_directory(spec, root)
            if not _uses_tmp(spec) and spec.checkpoint is None:
                _occupy_tmp(root)
            _mount_data(spec, root)
            bundle = launch.directory.path / "bundle"
            bundle.mkdir(mode=0o700)
            config = _config(spec, root, user, workdir, launch.lease.netns_fd)
            (bundle / "config.json").write_text(json.dumps(config))
            name = self._short_name(spec.id)
            state = self._state / name
            state.mkdir(mode=0o700)
            arguments = self._options(state, spec.network)
            fds: dict[int, int] = {}
            if spec.can_checkpoint:
                arguments.append(f"--log=/proc/self/fd/{_LOG_FD}")
                fds = _streams(spec, keep)
            if spec.checkpoint is None:
                passed = (CONTROL_FD,) if spec.can_checkpoint else _PASSED
                arguments += ["run", "--bundle", str(bundle)]
                arguments += [f"--pass-fd={fd}:{fd}" for fd in passed]
                arguments += [f"--exec-fd={FIRST_FREE_FD}", name]
            else:
                arguments += ["restore", "--bundle", str(bundle)]
                arguments += [f"--image-path={spec.checkpoint}", name]
            assert launch.cgroup is not None
            groups = [str(path / "cgroup.procs") for path in launch.cgroup.paths()]
            # gVisor's processes are in the container's groups from the first instruction on
            words = ["join", str(len(groups)), *groups, self._binary, *arguments]
            # it takes a program from a descriptor that is only for reading
            program = keep(os.open(f"/proc/self/fd/{self._init_fd}", os.O_RDONLY | os.O_CLOEXEC))
            fds[FIRST_FREE_FD] = program
            invocation = Invocation(INIT_PATH, words, fds, view=self._view)
            if spec.can_checkpoint:
                invocation = replace(invocation, errors_fd=_LOG_FD, words=_logged)
            if spec.checkpoint is not None:

                def wake(pid: int, control: socket.socket) -> None:
                    self._wake(spec, pid, control, program)

                invocation = replace(invocation, wake=wake)
            yield invocation

    async def _start(self, spec: ContainerSpec, lease: Lease) -> RunningContainer:
        address = ""
        if lease.netns_fd >= 0:
            address = await self._stage.run(lambda: self._link(lease))
        container = await super()._start(spec, lease)
        assert isinstance(container, RunscContainer)
        container.use(self._tool(spec), self._short_name(spec.id), address)
        return container

    def _link(self, lease: Lease) -> str:
        """What other containers of its sandbox will come by; only now can it be given that."""
        number = next(self._links)
        try:
            return in_netns(lease.netns_fd, lambda: inner_link(number))
        except OSError as error:
            raise ContainerStartError(f"the container's network: {error}") from error

    def _tool(self, spec: ContainerSpec) -> list[str]:
        """How to call it about a container."""
        return [self._binary, *self._options(self._state / self._short_name(spec.id), spec.network)]

    def _wake(self, spec: ContainerSpec, pid: int, control: socket.socket, program: int) -> None:
        """Hand a restored container's keeper its end of the conversation. Blocks.

        A restoration is given no descriptors but the standard streams; a further process is.
        """
        name = self._short_name(spec.id)
        _until_running(self._state / name / f"{name}_sandbox:{name}.state", pid)
        try:
            subprocess.run(
                [
                    *self._tool(spec),
                    "exec",
                    f"--pass-fd={control.fileno()}:{CONTROL_FD}",
                    f"--exec-fd={program}",
                    name,
                    *("keeper", "revive", str(CONTROL_FD)),
                ],
                pass_fds=[control.fileno(), program],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=_WAKE_S,
            )
        except subprocess.SubprocessError as error:
            said = getattr(error, "stderr", None) or b""
            words = _first_words(said.decode(errors="replace")) or str(error)
            raise ContainerStartError(f"the restored container does not answer: {words}") from error

    def clean(self, container_id: str) -> None:
        shutil.rmtree(self._state / self._short_name(container_id), ignore_errors=True)

    def files_process(self, launch: Launch, init: int, outer: int) -> int:
        """The gofer: as the kernel in the container, a child of the process that we started."""
        pid = self._gofer(outer)
        if not _uses_tmp(launch.spec):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._stage.delete_inside(pid, _STARTING)
        return pid

    def _gofer(self, outer: int) -> int:
        for thread in os.listdir(f"/proc/{outer}/task"):
            children = Path(f"/proc/{outer}/task/{thread}/children").read_text().split()
            for child in children:
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                if command.startswith(_GOFER):
                    return int(child)
        raise ContainerStartError("runsc has no gofer process")

    def _make_cgroup(self, spec: ContainerSpec) -> Cgroup | None:
        limits = spec.limits
        if limits.memory_mb:
            limits = msgspec.structs.replace(limits, memory_mb=limits.memory_mb + _OWN_MEMORY_MB)
        if limits.pids:
            limits = msgspec.structs.replace(limits, pids=limits.pids + _OWN_PIDS)
        return self._cgroups.create(spec.id, limits)

    def _options(self, state: Path, network: str) -> list[str]:
        mode = "host" if network == "host" else "sandbox"
        return [
            *("--root", str(state), f"--network={mode}", "--ignore-cgroups"),
            *("--overlay2=none", "--file-access=shared", "--dcache=0"),
            "--net-disconnect-ok",  # connections end with a checkpoint, instead of refusing it
        ]

    def _short_name(self, container_id: str) -> str:
        """What runsc calls it; part of the path of a socket, which has to be short."""
        return hashlib.sha256(container_id.encode()).hexdigest()[:12]

    def _view(self) -> AbstractContextManager[None]:
        if self._hides_settings:
            return self._stage.without_network_settings()
        return contextlib.nullcontext()


def _release(binary: str) -> int:
    """The date (YYYYMMDD) of a ``runsc``. Raises ``RuntimeUnavailableError`` for one too old."""
    try:
        said = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeUnavailableError(f"{binary} does not run: {error}; {_INSTALL}") from error
    found = re.search(r"20\d{6}", said)
    date = int(found.group()) if found else _KNOWS_LINUX_6_11  # built from source: of today
    if date < _OLDEST:
        raise RuntimeUnavailableError(f"{binary} is of {date}, too old; {_INSTALL}")
    return date


def _needs_hidden_settings(release: int) -> bool:
    return release < _KNOWS_LINUX_6_11 and os.path.exists("/proc/sys/net/core/rmem_default")


def _mount_data(spec: ContainerSpec, root: Path) -> None:
    """Mount what the container gets besides its image, in the tree at ``root``."""
    plain = linux.MS_NOSUID | linux.MS_NODEV
    for name in ("proc", "dev", "sys"):
        # gVisor has its own there; who looks at the files from outside finds nothing, and leaves it
        linux.mount("tmpfs", str(root / name), "tmpfs", plain | linux.MS_RDONLY, "size=0,mode=755")
    for mount in mount_plan(spec, root):
        if mount.source.startswith("/dev/"):
            continue  # a terminal: it gets one of its own
        target = str(root / mount.target.lstrip("/"))
        if not mount.source:
            linux.mount("tmpfs", target, "tmpfs", plain, "mode=1777")
            continue
        linux.mount(mount.source, target, "", linux.MS_BIND | linux.MS_REC)
        flags = linux.MS_REMOUNT | linux.MS_BIND | plain
        linux.mount("none", target, "", flags | (linux.MS_RDONLY if mount.read_only else 0))


def _config(
    spec: ContainerSpec, root: Path, user: User, workdir: str, netns_fd: int
) -> dict[str, Any]:
    args = _keeper_arguments(spec, user)
    mounts = _mounts(spec, root)
    config = bundle_config(spec, root, user, args=args, workdir=workdir, mounts=mounts)
    if netns_fd >= 0:
        path = f"/proc/{os.getpid()}/fd/{netns_fd}"
        config["linux"]["namespaces"].append({"type": "network", "path": path})
    return config


def _streams(spec: ContainerSpec, keep: Keep) -> dict[int, int]:
    """The command's streams as those of the tool: what a checkpoint allows of the host."""
    streams = (spec.stdin_fd, spec.stdout_fd, spec.stderr_fd)
    null = keep(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    return {target: fd if fd >= 0 else null for target, fd in enumerate(streams)}


def _until_running(state: Path, pid: int) -> None:
    """Block until the tool's process ``pid`` has restored its container.

    The file is all it tells: it has no other sign that another program could wait for.
    """
    deadline = time.monotonic() + _RESTORE_S
    while True:
        try:
            status = json.loads(state.read_bytes()).get("status", "")
        except (OSError, ValueError):  # not there, or not whole
            status = ""
        if status == "running":
            return
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            raise ContainerStartError("")
        if time.monotonic() > deadline:
            raise ContainerStartError(f"it was not restored within {_RESTORE_S:g} s")
        time.sleep(_LOOK_S)


def _logged(text: str) -> str:
    """What the tool's log says, a JSON object a line."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, AttributeError):
            return _first_words(str(json.loads(line).get("msg", "")))
    return _first_words(text)


def _first_words(text: str) -> str:
    """A sentence of the tool's, without where in its program it was."""
    deleted = _DELETED.search(text)
    if deleted is not None:
        return f"a program has the file /{deleted.group(1)} open, which was deleted"
    return text.strip().partition("\ngoroutine ")[0].strip().rstrip(":")


def _keeper_arguments(spec: ContainerSpec, user: User) -> list[str]:
    name, streams = "keeper", (IN_FD, OUT_FD, ERR_FD)
    if spec.can_checkpoint:
        name, streams = "lasting", (0, 1, 2)
    fds = map(str, (CONTROL_FD, *streams))
    who = [str(user.uid), str(user.gid), ",".join(map(str, user.groups))]
    return [name, *fds, *who, _terminal(spec.stdin_fd), *spec.command]


def _terminal(fd: int) -> str:
    """The size of the terminal that the command is given, empty for none.

    It gets one of the container's own; the host's only carries the bytes from now on.
    """
    if fd < 0 or not os.isatty(fd):
        return ""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    tty.setraw(fd, termios.TCSANOW)  # what has been typed already stays
    return f"{rows},{columns}"


def _uses_tmp(spec: ContainerSpec) -> bool:
    """Whether something of the container is at or below ``/tmp`` when it starts."""
    targets = [*spec.tmpfs, *(bind.target for bind in spec.binds), spec.workdir]
    return any(f"{target}/".startswith(f"{_TMP}/") for target in targets)


def _occupy_tmp(root: Path) -> None:
    """Put a file into ``/tmp``, for as long as gVisor starts.

    If the directory were empty, gVisor would mount a tmpfs of its own there for good, which no
    snapshot sees.
    """
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            place = linux.open_in_root(fd, _TMP, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return  # an image without one
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(os.path.basename(_STARTING), flags, 0o600, dir_fd=place))
        finally:
            os.close(place)
    finally:
        os.close(fd)


def _mounts(spec: ContainerSpec, root: Path) -> list[dict[str, Any]]:
    def mount(target: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
        return {
            "destination": target,
            "type": kind,
            "source": source or kind,
            "options": ["nosuid", "nodev", *options],
        }

    mounts = [
        mount("/proc", "proc", "noexec"),
        mount("/dev", "tmpfs", "mode=755"),
        mount("/dev/pts", "devpts", "noexec"),
        mount("/dev/shm", "tmpfs", "mode=1777"),  # noqa: S108
        mount("/sys", "sysfs", "noexec", "ro"),
    ]
    if _uses_tmp(spec) and not (root / "tmp").is_symlink():  # else see _occupy_tmp
        mounts.append(mount("/tmp", "bind", "rbind", "rw", source=str(root / "tmp")))  # noqa: S108
    return mounts
