"""A started container, whichever tool started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from homeport.node.cgroups import Cgroup, CgroupError
from homeport.node.network import Lease, NetworkProvider, socket_in_netns
from homeport.node.runtime.arguments import environment
from homeport.node.runtime.enter import Entered, EnteredProcess, Place, look_up
from homeport.node.runtime.files import FileTemplate
from homeport.node.runtime.handshake import Started
from homeport.node.runtime.port import (
    ContainerEndedError,
    ContainerSpec,
    Egress,
    ExecError,
    ExecSpec,
    Exit,
    ImageTree,
    MountedImage,
    Overlay,
    Process,
    RuntimeUnavailableError,
)
from homeport.node.runtime.records import ContainerDirectory, remove_tree
from homeport.node.runtime.stage import Inside, Stage
from homeport.node.runtime.users import User

_log = structlog.get_logger(__name__)
NO_CHECKPOINTS: Final = (
    "memory snapshots need gVisor: install runsc, with sandbox_runtime at auto or runsc"
)
_STATUS_BYTES: Final = 4
_LISTENING: Final = "0A"
"""``TCP_LISTEN`` in ``/proc/net/tcp``."""


class RunningContainer:
    """Implements ``port.Container`` over an init that ``handshake`` has led to its command."""

    def __init__(
        self,
        spec: ContainerSpec,
        *,
        started: Started,
        outer_pid: int,
        inside: Inside,
        files_fd: int,
        control: socket.socket | None,
        directory: ContainerDirectory,
        work: Path,
        cgroup: Cgroup | None,
        lease: Lease,
        network: NetworkProvider,
        stage: Stage,
        clean: Callable[[str], None],
        user: User,
        files: FileTemplate,
        enter: Callable[[Place, dict[str, str], str, ExecSpec], Entered],
        on_removed: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._started = started
        self._directory = directory
        self._work = work
        self._cgroup = cgroup
        self._lease = lease
        self._network = network
        self._stage = stage
        self._clean = clean
        self._user = user
        self._enter = enter
        self._files = files
        self._place: Place | None = None
        self._on_removed = on_removed
        self._address = lease.address
        self._outer_pid = outer_pid
        self._inside = inside
        self._files_fd = files_fd
        self._control = control
        self._outer_fd = os.pidfd_open(outer_pid)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        self._removing: asyncio.Task[None] | None = None
        self._reaped: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._started.init_fd, self._on_end)
        self._loop.add_reader(self._outer_fd, self._on_outer_end)

    @property
    def id(self) -> str:
        return self._spec.id

    @property
    def pid(self) -> int:
        return self._started.init_pid

    @property
    def command_pid(self) -> int:
        """Host pid of the command (a child of ``pid``)."""
        return self._started.command_pid

    @property
    def address(self) -> str:
        return self._address

    @property
    def netns(self) -> str:
        return f"/proc/{self._started.init_pid}/ns/net"

    @property
    def peer_address(self) -> str:
        return ""

    @property
    def cgroup(self) -> Cgroup | None:
        """Its control group, for metrics."""
        return self._cgroup

    def memory_bytes(self) -> int:
        return self._cgroup.memory_current() if self._cgroup is not None else 0

    def adopt(self, env: Mapping[str, str]) -> None:
        self._spec = replace(self._spec, env=dict(env))

    async def mount(self, overlay: Overlay) -> None:
        await self._stage.run(lambda: self._stage.mount_inside(self._inside, overlay))

    async def unmount(self, target: str) -> bool:
        return await self._stage.run(lambda: self._stage.unmount_inside(self._inside, target))

    async def mount_image(self, tree: ImageTree) -> MountedImage:
        return await self._stage.run(lambda: self._stage.mount_image_inside(self._inside, tree))

    async def unmount_image(self, mounted: MountedImage) -> bool:
        return await self._stage.run(
            lambda: self._stage.unmount_image_inside(self._inside, mounted)
        )

    async def open_directory(self, path: str) -> int:
        return await self._stage.run(lambda: self._stage.open_inside(self._inside, path))

    async def connect(self, port: int) -> socket.socket:
        inside = await asyncio.to_thread(socket_in_netns, self.netns)
        try:
            await self._loop.sock_connect(inside, ("127.0.0.1", port))
        except BaseException:
            inside.close()
            raise
        return inside

    async def is_listening(self, port: int) -> bool:
        return is_listening(self.pid, port)

    async def exec(self, spec: ExecSpec) -> Process:
        env, workdir = self._surroundings(spec)

        def start() -> Entered:
            return self._enter(self._look_up(), env, workdir, spec)

        return EnteredProcess(await self._stage.run(start))

    def _surroundings(self, spec: ExecSpec) -> tuple[dict[str, str], str]:
        """Environment and working directory of one more process. Raises ``ExecError``."""
        if self._ended.done() or self._removing is not None:
            raise ContainerEndedError()
        own = self._spec
        env = {**environment(own, self._user), **spec.env}
        for name, value in env.items():
            if not name or "=" in name or "\0" in name or "\0" in value:
                raise ExecError(f"an environment variable cannot be called {name!r}")
        return env, spec.workdir or own.workdir or "/"

    async def serve_files(self, channel: socket.socket) -> None:
        if self._ended.done() or self._removing is not None:
            raise ContainerEndedError()
        await self._stage.run(lambda: self._files.serve(self._files_place(), channel.fileno()))

    def _files_place(self) -> Place:
        """From where its files are seen as it sees them. Blocks."""
        return self._look_up()

    def _look_up(self) -> Place:
        try:
            if self._place is None:
                init = self._started
                self._place = look_up(init.init_pid, init.init_fd, self._user)
        except OSError as error:
            raise ContainerEndedError() from error
        return self._place

    def usage(self) -> tuple[float, int]:
        if self._cgroup is None:
            return 0.0, 0
        return self._cgroup.cpu_ns() / 1e9, self._cgroup.memory_current()

    async def restrict(self, egress: Egress | None) -> None:
        if self._ended.done():
            return
        await self._network.restrict(self._lease, egress)

    async def freeze(self) -> None:
        await self._stage.run(lambda: self._hold(Cgroup.freeze))

    async def thaw(self) -> None:
        await self._stage.run(lambda: self._hold(Cgroup.thaw))

    def _hold(self, change: Callable[[Cgroup], None]) -> None:
        if self._cgroup is None:
            raise RuntimeUnavailableError("a container without a control group cannot be held")
        try:
            change(self._cgroup)
        except CgroupError as error:
            raise RuntimeUnavailableError(str(error)) from error

    async def checkpoint(self, directory: Path) -> None:
        raise RuntimeUnavailableError(NO_CHECKPOINTS)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._started.command_fd, number)

    def kill(self) -> None:
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._started.init_fd, signal.SIGKILL)

    async def remove(self, *, keep_upper: bool = False) -> None:
        if self._removing is None:
            self._removing = self._loop.create_task(self._remove(keep_upper))
        await asyncio.shield(self._removing)

    async def _remove(self, keep_upper: bool) -> None:
        self.kill()
        await self.wait()
        await self._reaped
        for fd in (self._started.init_fd, self._started.command_fd, self._files_fd):
            if fd >= 0:
                os.close(fd)

        def clean() -> None:
            try:
                if self._cgroup is not None:
                    self._cgroup.remove()
                self._clean(self.id)
            except CgroupError as error:
                _log.warning("a control group stays", container=self.id, error=str(error))
            remove_tree(self._work)
            if not keep_upper:
                remove_tree(self._spec.upper)
            self._directory.remove()

        await self._stage.run(clean)
        await self._network.release(self._lease)
        self._on_removed(self.id)

    def _on_end(self) -> None:
        """Init has ended, and with it every process of the container."""
        self._loop.remove_reader(self._started.init_fd)
        oom = self._cgroup is not None and self._cgroup.oom_killed()
        code = self._returncode()
        self._ended.set_result(Exit(code, oom, self._spec.limits.memory_mb))

    def _returncode(self) -> int:
        return read_status(self._directory.status_file)

    def _on_outer_end(self) -> None:
        """The tool's process outside has ended; it does so right after init."""
        self._loop.remove_reader(self._outer_fd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._outer_fd, os.WEXITED)
        os.close(self._outer_fd)
        self._reaped.set_result(None)
        self.kill()  # whoever ended it: no container without its tool


def read_status(path: Path) -> int:
    """The return code in a status file; -9 if init did not get to write one."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if len(data) < _STATUS_BYTES:
        return -signal.SIGKILL
    return os.waitstatus_to_exitcode(int.from_bytes(data[:_STATUS_BYTES], "little"))


def is_listening(pid: int, port: int) -> bool:
    """Whether a process in the network of process ``pid`` listens on a TCP port."""
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state = line.split(maxsplit=4)[:4]
            if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                return True
    return False
