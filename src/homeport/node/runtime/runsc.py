"""Containers by gVisor's ``runsc``: a kernel of their own, in a process of the host.

Nobody outside can join such a container's processes: its first one, the keeper, starts further
ones and makes connections (``keeper.py``). Its files are a tree of mounts on the host, as for the
other runtimes; ``runsc``'s gofer process holds it, and what is mounted there while the container
runs shows inside, since every path is looked up on the host anew (``--file-access=shared``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from homeport.kernel.resources import Limits
from homeport.node.cgroups import Cgroup, CgroupProvider
from homeport.node.network import Lease, NetworkProvider, in_netns
from homeport.node.peers import inner_link
from homeport.node.runtime import linux
from homeport.node.runtime.ahead import Ahead
from homeport.node.runtime.arguments import working_directory
from homeport.node.runtime.base import StagedRuntime
from homeport.node.runtime.bundle import bundle_config
from homeport.node.runtime.container import RunningContainer
from homeport.node.runtime.enter import Place, look_up
from homeport.node.runtime.keeper import Keeper, terminal_size
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
    Container,
    ContainerEndedError,
    ContainerSpec,
    ContainerStartError,
    ExecSpec,
    Process,
    RuntimeUnavailableError,
)
from homeport.node.runtime.prepared import (
    PREFIX,
    Adoption,
    Preparation,
    Prepared,
    PreparedEndedError,
    PreparedTool,
    add_network,
    joined,
    program_for,
)
from homeport.node.runtime.records import remove_tree
from homeport.node.runtime.runsc_files import (
    STARTING,
    gvisor_mounts,
    mount_data,
    occupy_tmp,
    uses_tmp,
)
from homeport.node.runtime.runsc_program import Runsc, first_words, gofer, logged
from homeport.node.runtime.stage import Inside, Stage
from homeport.node.runtime.users import User, resolve_user

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_OWN_MEMORY_MB: Final = 96
"""What gVisor's own processes need beside the container's."""
_OWN_PIDS: Final = 512
"""Threads of gVisor's own processes on the host."""
_PASSED: Final = (CONTROL_FD, IN_FD, OUT_FD, ERR_FD)
_LOG_FD: Final = FIRST_FREE_FD + 1
_WAKE_S: Final = 60.0
_PAUSE_S: Final = 0.05
"""So much later than a start the next container is prepared, which takes the processor."""
_WORDS_MAX: Final = 20_000
_TEXT_MAX: Final = 512 * 1024
"""Of what a prepared container can be told; longer commands are started with a container of theirs."""


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
        return None if process.returncode == 0 else first_words(said.decode(errors="replace"))

    def _files_place(self) -> Place:
        try:
            if self._place is None:
                place = look_up(self._inside.pid, self._files_fd, self._user)
                namespaces = place.namespaces & linux.CLONE_NEWNS
                self._place = replace(place, namespaces=namespaces, root=self._inside.root)
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

    def __init__(
        self,
        run_dir: Path,
        network: NetworkProvider,
        cgroups: CgroupProvider,
        *,
        prepared_max: int = 0,
    ) -> None:
        state = run_dir.absolute() / "runsc"
        self._runsc = Runsc(state)
        self._links = itertools.count()
        if not cgroups.available():
            raise RuntimeUnavailableError(
                "runsc needs control groups, and there are none in /sys/fs/cgroup: mount them "
                "(mount -t cgroup2 none /sys/fs/cgroup)"
            )
        super().__init__(run_dir, network, cgroups)
        state.mkdir(mode=0o700, exist_ok=True)
        self._ahead = Ahead[str, Prepared](
            prepared_max,
            self._prepare,
            self._discard,
            pause_s=_PAUSE_S,
            ends=lambda prepared: prepared.outer_fd,
        )
        self._ahead_stage = Stage(self._run_dir / "stage" / "ahead", private=True, threads=1)
        self._ahead_tool = PreparedTool(self._runsc, self._ahead_stage, self._init_fd)
        self.adopted = 0
        """So many starts had one that waited."""
        self._adopted: dict[str, str] = {}
        """Containers by their ids, and what they were called when they were prepared."""
        self._waiting: set[str] = set()
        (self._run_dir / "prepared").mkdir(exist_ok=True)

    @property
    def name(self) -> str:
        return "runsc"

    @property
    def keeps_control(self) -> bool:
        return True

    @property
    def joins_groups(self) -> bool:
        return True

    async def close(self) -> None:
        if self._init_fd < 0:
            return
        await self._ahead.close()
        await super().close()
        self._ahead_stage.close()
        remove_tree(self._run_dir / "prepared")
        remove_tree(self._run_dir / "runsc")

    async def prepare(self, network: str) -> None:
        """Have a container wait for a start with ``network``; until it does."""
        await self._ahead.prepare(network)

    @property
    def waiting(self) -> frozenset[str]:
        """What the containers that wait, or are about to, are called on the machine."""
        return frozenset(self._waiting)

    @contextlib.contextmanager
    def invocation(self, launch: Launch, keep: Keep) -> Generator[Invocation]:
        spec = launch.spec
        with self._stage.root(launch.tree) as root:
            user = launch.user = resolve_user(root, spec.user)
            workdir = working_directory(spec, root)
            if not uses_tmp(spec) and spec.checkpoint is None:
                occupy_tmp(root)
            mount_data(spec, root)
            bundle = launch.directory.path / "bundle"
            bundle.mkdir(mode=0o700)
            config = _config(spec, root, user, workdir, launch.lease.netns_fd)
            (bundle / "config.json").write_text(json.dumps(config))
            name = self._runsc.name(spec.id)
            self._runsc.state(spec.id).mkdir(mode=0o700)
            arguments = self._runsc.words(spec.id, spec.network)
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
            program = keep(program_for(self._init_fd))
            fds[FIRST_FREE_FD] = program
            words = joined(launch.cgroup, arguments)
            view = partial(self._runsc.view, self._stage)
            invocation = Invocation(INIT_PATH, words, fds, view=view)
            if spec.can_checkpoint:
                invocation = replace(invocation, errors_fd=_LOG_FD, words=logged)
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
        self._use(container, spec, spec.id, address)
        return container

    def _use(
        self, container: RunningContainer, spec: ContainerSpec, called: str, address: str
    ) -> None:
        assert isinstance(container, RunscContainer)
        tool = self._runsc.words(called, spec.network)
        container.use(tool, self._runsc.name(called), address)

    def _link(self, lease: Lease) -> str:
        """What other containers of its sandbox will come by; only now can it be given that."""
        number = next(self._links)
        try:
            return in_netns(lease.netns_fd, lambda: inner_link(number))
        except OSError as error:
            raise ContainerStartError(f"the container's network: {error}") from error

    def _wake(self, spec: ContainerSpec, pid: int, control: socket.socket, program: int) -> None:
        """Hand a restored container's keeper its end of the conversation. Blocks.

        A restoration is given no descriptors but the standard streams; a further process is.
        """
        self._runsc.until_running(spec.id, pid)
        try:
            subprocess.run(
                [
                    *self._runsc.words(spec.id, spec.network),
                    "exec",
                    f"--pass-fd={control.fileno()}:{CONTROL_FD}",
                    f"--exec-fd={program}",
                    self._runsc.name(spec.id),
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
            words = first_words(said.decode(errors="replace")) or str(error)
            raise ContainerStartError(f"the restored container does not answer: {words}") from error

    def clean(self, container_id: str) -> None:
        self._runsc.clean(container_id)

    def files_process(self, launch: Launch, init: int, outer: int) -> int:
        """The gofer: as the kernel in the container, a child of the process that we started."""
        pid = gofer(outer)
        if not uses_tmp(launch.spec):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._stage.delete_inside(Inside(pid), STARTING)
        return pid

    def _make_cgroup(self, spec: ContainerSpec) -> Cgroup | None:
        return self._cgroups.create(spec.id, self._limits(spec))

    def _limits(self, spec: ContainerSpec) -> Limits:
        """With what gVisor itself needs."""
        limits = spec.limits
        if limits.memory_mb:
            limits = msgspec.structs.replace(limits, memory_mb=limits.memory_mb + _OWN_MEMORY_MB)
        if limits.pids:
            limits = msgspec.structs.replace(limits, pids=limits.pids + _OWN_PIDS)
        return limits

    # --- prepared ahead ---

    async def _begin(self, spec: ContainerSpec) -> Container:
        prepared = self._ahead.take(spec.network) if _can_be_told(spec) else None
        if prepared is None:
            return await super()._begin(spec)
        self._adopted[spec.id] = prepared.id
        try:
            container = await self._adopt(spec, prepared)
        except BaseException as error:
            del self._adopted[spec.id]
            self._starting.discard(spec.id)
            await self._discard(prepared)
            if not isinstance(error, PreparedEndedError):
                raise
            log.warning("a container that was prepared has ended", error=str(error))
            self._starting.add(spec.id)
            return await super()._begin(spec)
        self.adopted += 1
        self._waiting.discard(prepared.id)
        self._starting.discard(spec.id)
        self._containers[spec.id] = container
        return container

    async def _adopt(self, spec: ContainerSpec, prepared: Prepared) -> RunningContainer:
        lease = prepared.lease
        if spec.egress is not None and spec.network == "nat":
            await self._network.restrict(lease, spec.egress)
        adoption = Adoption(self._shared, self, self._stage, spec, prepared, self._limits(spec))
        started = await self._stage.run(adoption.adopt)

        def clean(container_id: str) -> None:
            self.clean(prepared.id)
            prepared.directory.remove()

        container = self._container(adoption, started, prepared.outer_pid, clean)
        self._use(container, spec, prepared.id, prepared.peer_address)
        prepared.forget()
        return container

    async def _prepare(self, network: str) -> Prepared:
        """One more container that waits. Raises as ``start``."""
        name = f"{PREFIX}{os.urandom(4).hex()}"
        self._waiting.add(name)
        try:
            return await self._prepare_as(name, network)
        except BaseException:
            self._waiting.discard(name)
            raise

    async def _prepare_as(self, name: str, network: str) -> Prepared:
        lease = await self._network.acquire(network)
        try:
            address = await self._ahead_stage.run(lambda: self._link(lease))
            preparation = Preparation(self._shared, self._ahead_tool, name, network, lease)
            started, outer = await self._ahead_stage.run(preparation.run)
        except BaseException:
            await self._network.release(lease)
            raise
        return Prepared(preparation, started, outer, address)

    async def _discard(self, prepared: Prepared) -> None:
        await self._stage.run(prepared.end)
        self.clean(prepared.id)
        self._waiting.discard(prepared.id)
        await self._network.release(prepared.lease)

    def _own(self) -> set[str]:
        return super()._own() | self._waiting | set(self._adopted.values())

    def _forget(self, container_id: str) -> None:
        super()._forget(container_id)
        self._adopted.pop(container_id, None)

    def _sweep(self) -> set[str]:
        swept = super()._sweep()
        own = self._own()
        for path in (self._run_dir / "prepared").iterdir():
            if path.name not in own:
                remove_tree(path)
        self._runsc.clean_all(own)
        return {name for name in swept if not name.startswith(PREFIX)}


def _can_be_told(spec: ContainerSpec) -> bool:
    """Whether all that is asked for can still be given to a container that waits."""
    words = [*spec.command, *spec.env, *spec.env.values()]
    return (
        spec.network in ("nat", "none")
        and not (spec.can_checkpoint or spec.checkpoint or spec.devices or spec.hooks)
        and len(words) < _WORDS_MAX
        and sum(map(len, words)) < _TEXT_MAX
        and not any("\0" in word for word in words)
    )


def _config(
    spec: ContainerSpec, root: Path, user: User, workdir: str, netns_fd: int
) -> dict[str, Any]:
    args = _keeper_arguments(spec, user)
    mounts = gvisor_mounts(spec, root)
    config = bundle_config(spec, root, user, args=args, workdir=workdir, mounts=mounts)
    add_network(config, netns_fd)
    return config


def _streams(spec: ContainerSpec, keep: Keep) -> dict[int, int]:
    """The command's streams as those of the tool: what a checkpoint allows of the host."""
    streams = (spec.stdin_fd, spec.stdout_fd, spec.stderr_fd)
    null = keep(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    return {target: fd if fd >= 0 else null for target, fd in enumerate(streams)}


def _keeper_arguments(spec: ContainerSpec, user: User) -> list[str]:
    name, streams = "keeper", (IN_FD, OUT_FD, ERR_FD)
    if spec.can_checkpoint:
        name, streams = "lasting", (0, 1, 2)
    fds = map(str, (CONTROL_FD, *streams))
    who = [str(user.uid), str(user.gid), ",".join(map(str, user.groups))]
    return [name, *fds, *who, terminal_size(spec.stdin_fd), *spec.command]
