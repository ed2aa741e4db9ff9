"""gVisor containers that are started before it is known what for.

gVisor needs some 150 ms from its program's start to that of the first process, and a container's
network is fixed by then; its files, limits, name and command are not. So a few containers wait
with a network and without files (``init/keeper.c`` as ``prepared``). What is started in one is
mounted where its gofer sees it, and the rest is said in one message. Nothing of anybody was in one
before, each is used once, and all end with the node.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from homeport.kernel.resources import Limits
from homeport.node.cgroups import Cgroup
from homeport.node.network import Lease
from homeport.node.runtime import linux
from homeport.node.runtime.arguments import (
    CAPABILITIES,
    environment,
    hostname,
    working_directory,
)
from homeport.node.runtime.bundle import bundle_config
from homeport.node.runtime.handshake import CommandError, Started, greet, proceed
from homeport.node.runtime.keeper import terminal_size
from homeport.node.runtime.launch import (
    CONTROL_FD,
    FIRST_FREE_FD,
    INIT_PATH,
    Invocation,
    Keep,
    Launch,
    Shared,
    Tool,
)
from homeport.node.runtime.port import (
    ContainerSpec,
    ContainerStartError,
    Tree,
)
from homeport.node.runtime.records import ContainerDirectory
from homeport.node.runtime.runsc_files import gvisor_mounts, mount_data
from homeport.node.runtime.runsc_program import Runsc, gofer
from homeport.node.runtime.stage import Inside, Stage
from homeport.node.runtime.users import User, resolve_user

PREFIX: Final = "prepared-"
FILES: Final = "/files"
"""Where the keeper finds the container's files."""
_IDLE: Final = Limits(milli_cpu=1)
"""Gets the processor when nobody else wants it."""
_SHARE: Final = 1000
_SEND_BUFFER: Final = 4 << 20
_SO_SNDBUFFORCE: Final = 32
_END_TIMEOUT_MS: Final = 10_000


class PreparedEndedError(ContainerStartError):
    """The container that waited is gone; the start itself may succeed with another."""


class PreparedTool:
    """How ``runsc`` is called for a container without files (a ``launch.Tool``)."""

    keeps_control = True
    joins_groups = True

    def __init__(self, runsc: Runsc, stage: Stage, program_fd: int) -> None:
        self._runsc = runsc
        self._stage = stage
        self._program_fd = program_fd

    @contextlib.contextmanager
    def invocation(self, launch: Launch, keep: Keep) -> Generator[Invocation]:
        """See ``launch.Tool``."""
        spec = launch.spec
        with self._stage.empty_root(("files", "proc", "dev", "sys", "tmp/not-empty")) as root:
            bundle = launch.directory.path / "bundle"
            bundle.mkdir(mode=0o700)
            mounts = gvisor_mounts(spec, root)
            args = ["prepared", str(CONTROL_FD)]
            config = bundle_config(spec, root, User(), args=args, workdir="/", mounts=mounts)
            for kind in ("bounding", "effective", "permitted"):  # it gives that up
                config["process"]["capabilities"][kind] = [*CAPABILITIES, "CAP_SYS_ADMIN"]
            add_network(config, launch.lease.netns_fd)
            (bundle / "config.json").write_text(json.dumps(config))
            self._runsc.state(spec.id).mkdir(mode=0o700)
            words = [*self._runsc.words(spec.id, spec.network), "run", "--bundle", str(bundle)]
            words += [f"--pass-fd={CONTROL_FD}:{CONTROL_FD}", f"--exec-fd={FIRST_FREE_FD}"]
            words.append(self._runsc.name(spec.id))
            assert launch.cgroup is not None
            yield Invocation(
                INIT_PATH,
                joined(launch.cgroup, words),
                {FIRST_FREE_FD: keep(program_for(self._program_fd))},
                view=partial(self._runsc.view, self._stage),
            )

    def clean(self, container_id: str) -> None:
        """See ``launch.Tool``."""
        self._runsc.clean(container_id)

    def files_process(self, launch: Launch, init: int, outer: int) -> int:
        """See ``launch.Tool``."""
        return gofer(outer)


def joined(cgroup: Cgroup, command: Sequence[str]) -> list[str]:
    """Arguments for the keeper: it becomes ``command`` in these control groups.

    So gVisor's processes are in them from the first instruction on.
    """
    groups = [str(path) for path in cgroup.self_files()]
    return ["join", str(len(groups)), *groups, *command]


def program_for(program_fd: int) -> int:
    """The program once more: ``runsc`` takes it from a descriptor that is only for reading."""
    return os.open(f"/proc/self/fd/{program_fd}", os.O_RDONLY | os.O_CLOEXEC)


def add_network(config: dict[str, Any], netns_fd: int) -> None:
    """Have the container join that network namespace; -1: none of its own."""
    if netns_fd >= 0:
        path = f"/proc/{os.getpid()}/fd/{netns_fd}"
        config["linux"]["namespaces"].append({"type": "network", "path": path})


class Preparation(Launch):
    """The first half of a start."""

    def __init__(
        self, shared: Shared, tool: Tool, container_id: str, network: str, lease: Lease
    ) -> None:
        place = shared.run_dir / "prepared" / container_id
        spec = ContainerSpec(
            id=container_id,
            layers=(),
            upper=place / "upper",  # never made
            command=(),
            env={},
            network=network,
            hostname="localhost",
            limits=_IDLE,
        )
        super().__init__(shared, tool, spec, lease)
        self.directory = ContainerDirectory(place)

    def _prepare(self) -> None:
        self.cgroup = self.shared.make_cgroup(self.spec)

    def _lead(self, control: socket.socket, outer: int) -> Started:
        pid, fd = greet(control, lambda init: self._attach(init, outer))
        return Started(pid, fd, 0, -1)


class Prepared:
    """A container that waits."""

    def __init__(
        self, preparation: Preparation, started: Started, outer_pid: int, peer_address: str
    ) -> None:
        assert preparation.cgroup is not None
        assert preparation.control is not None
        self.id = preparation.spec.id
        self.network = preparation.spec.network
        self.lease = preparation.lease
        self.directory = preparation.directory
        self.cgroup = preparation.cgroup
        self.control = preparation.control
        self.files_pid = preparation.inside.pid
        self.files_fd = preparation.files_fd
        self.init_pid = started.init_pid
        self.init_fd = started.init_fd
        self.outer_pid = outer_pid
        self.outer_fd = os.pidfd_open(outer_pid)
        self.peer_address = peer_address

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be started in it any more."""
        return any(_wait(fd, 0) for fd in (self.init_fd, self.files_fd, self.outer_fd))

    def forget(self) -> None:
        """Others look after it from now on."""
        os.close(self.outer_fd)

    def end(self) -> None:
        """End it and remove it, but for its network. Blocks."""
        for fd in (self.init_fd, self.files_fd, self.outer_fd):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        _wait(self.outer_fd, _END_TIMEOUT_MS)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.outer_fd, os.WEXITED)
        for fd in (self.init_fd, self.files_fd, self.outer_fd):
            os.close(fd)
        self.control.close()
        self.cgroup.remove()
        self.directory.remove()


def _wait(pid_fd: int, timeout_ms: int) -> bool:
    poller = select.poll()
    poller.register(pid_fd, select.POLLIN)
    return bool(poller.poll(timeout_ms))


class Adoption(Launch):
    """The second half of a start, in a container that waits, which stays its owner's if it fails."""

    def __init__(
        self,
        shared: Shared,
        tool: Tool,
        stage: Stage,
        spec: ContainerSpec,
        prepared: Prepared,
        limits: Limits,
    ) -> None:
        super().__init__(shared, tool, spec, prepared.lease)
        self._stage = stage
        self._prepared = prepared
        # without a share it gets what the kernel gives: that of one processor
        milli_cpu = limits.milli_cpu or _SHARE
        self._limits = msgspec.structs.replace(limits, milli_cpu=milli_cpu)
        self.inside = Inside(prepared.files_pid, FILES)

    def adopt(self) -> Started:
        """Blocks, in a thread of the stage. Raises as ``run``, and ``PreparedEndedError``."""
        try:
            return self._adopt()
        except (CommandError, PreparedEndedError):
            raise
        except ContainerStartError as error:
            if self._prepared.has_ended:
                raise PreparedEndedError(str(error)) from error
            raise

    def _adopt(self) -> Started:
        with self._recorded():
            self.cgroup = self._prepared.cgroup
            self._prepare_files()
            self.cgroup.limit(self._limits)
            with contextlib.ExitStack() as stack:
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, null)
                text = self._mount()
                try:
                    started = self._tell(text, null)
                except CommandError:
                    raise
                except ContainerStartError as error:
                    raise PreparedEndedError(str(error)) from error
            self.files_fd = self._prepared.files_fd
            self.control = self._prepared.control
            return started

    def _undo(self) -> None:
        self.cgroup = None  # it is the owner's
        super()._undo()

    def _mount(self) -> bytes:
        """Mount the files where the gofer sees them; the message for the keeper."""
        spec = self.spec
        with self._stage.root(self.tree) as root:
            user = self.user = resolve_user(root, spec.user).within(spec.groups)
            workdir = working_directory(spec, root)
            mount_data(spec, root)
            top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                tree = linux.clone_mount(top, recursive=True)
            finally:
                os.close(top)
        try:
            self._stage.place_inside(Inside(self._prepared.files_pid), Tree(tree, FILES))
        finally:
            os.close(tree)
        self.mount_data()
        words = [
            *(hostname(spec), workdir, str(len(spec.command))),
            *(str(user.uid), str(user.gid), ",".join(map(str, user.groups))),
            terminal_size(spec.stdin_fd),
            *spec.command,
            *(f"{name}={value}" for name, value in environment(spec, user).items()),
        ]
        return b"b" + b"".join(os.fsencode(word) + b"\0" for word in words)

    def _tell(self, text: bytes, null: int) -> Started:
        spec, prepared = self.spec, self._prepared
        streams = (spec.stdin_fd, spec.stdout_fd, spec.stderr_fd)
        fds = array.array("i", [fd if fd >= 0 else null for fd in streams])
        control = prepared.control
        control.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)

        def go() -> None:
            control.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])

        # a failure ends the container, but does not take its descriptor from its owner
        init_fd = os.dup(prepared.init_fd)
        started = proceed(control, prepared.init_pid, init_fd, go, self.command)
        os.close(prepared.init_fd)
        return started
