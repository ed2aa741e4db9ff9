"""One start of a container, whatever the tool: the steps before and after the tool's own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from homeport.node.cgroups import Cgroup, CgroupError
from homeport.node.network import Lease
from homeport.node.resolver import Resolver
from homeport.node.runtime.arguments import hostname
from homeport.node.runtime.handshake import CommandError, Started, control_pair, converse
from homeport.node.runtime.port import DEFAULT_PATH, ContainerSpec, ContainerStartError
from homeport.node.runtime.records import ContainerDirectory, Record, outer_name, remove_tree
from homeport.node.runtime.rootfs import mount_points, write_generated
from homeport.node.runtime.roots import Layers, Root, Roots
from homeport.node.runtime.stage import Inside, Stage
from homeport.node.runtime.users import User

STATUS_FD: Final = 3
CONTROL_FD: Final = 4
IN_FD: Final = 5
OUT_FD: Final = 6
ERR_FD: Final = 7
INIT_FD: Final = 8
FIRST_FREE_FD: Final = 9

INIT_PATH: Final = f"/proc/self/fd/{INIT_FD}"

_HIGH_FD: Final = 40  # sources are moved above all targets
_ERRORS_MAX: Final = 4096
_END_TIMEOUT_MS: Final = 3000
# Python ignores some signals; a container must not inherit that.
_DEFAULT_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM)

Keep = Callable[[int], int]
"""Takes over a descriptor: it is closed when the start is over. Returns it."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """How to call the tool. ``fds`` maps numbers from ``FIRST_FREE_FD`` on to descriptors.

    They may be 0 to 2 too if ``errors_fd`` is another one; ``words`` makes a sentence of what the
    tool writes there. ``wake`` is called with the tool's pid and init's end of the conversation
    where init cannot be given that when it starts.

    ``view`` surrounds the moment in which the tool's process is made, which inherits what the
    calling thread sees then.
    """

    path: str
    arguments: list[str]
    fds: dict[int, int] = field(default_factory=dict[int, int])
    view: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    errors_fd: int = 2
    words: Callable[[str], str] = str.strip
    wake: Callable[[int, socket.socket], None] | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """What all starts of a runtime have in common."""

    run_dir: Path
    token: str
    init_fd: int
    make_cgroup: Callable[[ContainerSpec], Cgroup | None]
    hasten: Callable[[], None]
    """Says that a process will be moved into its groups soon."""
    stage: Stage
    roots: Roots
    resolver: Callable[[], Resolver]


class Tool(Protocol):
    """The part of a runtime that differs from tool to tool."""

    def invocation(self, launch: Launch, keep: Keep) -> AbstractContextManager[Invocation]:
        """Prepare the root file system for the time of the block and say how to call the tool."""
        ...

    def clean(self, container_id: str) -> None:
        """Undo what the tool itself keeps about a container; its processes are gone."""
        ...

    def files_process(self, launch: Launch, init: int, outer: int) -> int:
        """Pid of the process whose mounts are the container's, when init is there.

        Nothing else runs in the container yet.
        """
        ...

    @property
    def joins_groups(self) -> bool:
        """Whether what it starts is in the container's control groups by then."""
        ...

    @property
    def keeps_control(self) -> bool:
        """Whether the conversation with init goes on once the command runs (``Launch.control``)."""
        ...


def init_arguments(
    user: User | None, command: tuple[str, ...], groups: Iterable[int] = ()
) -> list[str]:
    """What init is told. Without ``user`` it stays who it is; ``groups`` are descriptors to join by."""
    who = ["-", "-", ""]
    if user is not None:
        who = [str(user.uid), str(user.gid), ",".join(map(str, user.groups))]
    fds = map(str, (STATUS_FD, CONTROL_FD, IN_FD, OUT_FD, ERR_FD))
    return [*fds, *who, ",".join(map(str, groups)), *command]


def root_layers(run_dir: Path, spec: ContainerSpec) -> Layers:
    """The read-only layers of its root file system, but for the generated one. Blocks."""
    skeleton = mount_points(run_dir / "skeletons", spec.binds, spec.tmpfs)
    return (*reversed(spec.layers), skeleton)


class Launch:
    """The steps of one start; ``run`` blocks, in a thread of the stage."""

    def __init__(self, shared: Shared, tool: Tool, spec: ContainerSpec, lease: Lease) -> None:
        self.shared = shared
        self.spec = spec
        self.lease = lease
        self.directory = ContainerDirectory(shared.run_dir / "containers" / spec.id)
        self.work = spec.upper.with_name(spec.upper.name + ".work")
        self.cgroup: Cgroup | None = None
        self._tool = tool
        self.user = User()
        """Set by the tool once it has looked into the image."""
        self.inside = Inside(0)
        """See ``Tool.files_process``; 0 until init is there."""
        self.files_fd = -1
        """A pidfd of that process, the caller's, if it is not init itself."""
        self.control: socket.socket | None = None
        """Our end of the conversation with init, the caller's, if the tool keeps it."""
        self.root: Root | None = None
        self.had_root = False
        """Whether its root file system was there before."""

    def run(self) -> tuple[Started, int]:
        """Start it: what init said, and the pid of the tool's process (our child)."""
        with self._recorded(), contextlib.ExitStack() as stack:
            self._prepare()

            def keep(fd: int) -> int:
                stack.callback(os.close, fd)
                return fd

            invocation = stack.enter_context(self._tool.invocation(self, keep))
            return self._spawn(invocation, keep)

    @contextlib.contextmanager
    def _recorded(self) -> Generator[None]:
        """For the time in which what fails has to be undone."""
        try:
            self.directory.create(self._record())
        except FileExistsError:
            raise ContainerStartError(f"there already is a container {self.spec.id}") from None
        try:
            yield
        except BaseException as error:
            self._undo()
            if isinstance(error, (OSError, CgroupError, ValueError)):
                raise ContainerStartError(f"container {self.spec.id}: {error}") from error
            raise
        finally:
            if self.root is not None:
                self.root.close()

    @property
    def tree(self) -> int:
        """Its root file system, mounted nowhere: a descriptor."""
        assert self.root is not None
        return self.root.tree

    def group_fds(self, first: int, keep: Keep) -> dict[int, int]:
        """By what init joins its control groups: numbers from ``first`` on, and descriptors."""
        paths = self.cgroup.tasks_files() if self.cgroup is not None else []
        flags = os.O_WRONLY | os.O_CLOEXEC
        return {first + index: keep(os.open(path, flags)) for index, path in enumerate(paths)}

    def _record(self) -> Record:
        return Record(
            id=self.spec.id,
            upper=str(self.spec.upper),
            work=str(self.work),
            cgroup=self.spec.id,
            interface=self.lease.interface,
        )

    def _prepare(self) -> None:
        self.cgroup = self.shared.make_cgroup(self.spec)
        if self.cgroup is not None and not self._tool.joins_groups:
            self.shared.hasten()
        self._prepare_files()

    def _prepare_files(self) -> None:
        spec = self.spec
        layers = root_layers(self.shared.run_dir, spec)
        remove_tree(self.work)
        self.root = self._waiting_root(layers)
        self.had_root = self.root is not None
        if self.root is None:
            spec.upper.parent.mkdir(parents=True, exist_ok=True)
            self.root = Root(self.shared.stage, layers, self.work, spec.upper)
        resolver = self.shared.resolver()
        servers = resolver.nameservers if spec.network != "none" else ()
        write_generated(
            self.root.generated, hostname(spec), self.lease.address, servers, resolver.search
        )

    def _waiting_root(self, layers: Layers) -> Root | None:
        upper = self.spec.upper
        if not self.spec.is_repeated or upper.exists():
            return None
        root = self.shared.roots.take(layers)
        if root is None:
            return None
        try:
            upper.parent.mkdir(parents=True, exist_ok=True)
            root.move(self.work, upper)
        except OSError as error:
            root.discard()
            if error.errno != errno.EXDEV:
                raise
            return None
        return root

    def _spawn(self, invocation: Invocation, keep: Keep) -> tuple[Started, int]:
        ours, theirs = control_pair()
        with ours:
            errors = keep(os.memfd_create("tool-errors", os.MFD_CLOEXEC))
            try:
                pid = self._posix_spawn(invocation, theirs, errors, keep)
            except BaseException:
                theirs.close()
                raise
            try:
                with theirs:
                    if invocation.wake is not None:
                        invocation.wake(pid, theirs)
                started = self._lead(ours, pid)
                if self._tool.keeps_control:
                    self.control = ours.dup()
                return started, pid
            except BaseException as error:
                _end(pid)
                if isinstance(error, ContainerStartError) and not isinstance(error, CommandError):
                    said = os.pread(errors, _ERRORS_MAX, 0).decode(errors="replace")
                    words = invocation.words(said)
                    raise ContainerStartError(words or str(error)) from error
                raise

    @property
    def command(self) -> str:
        """What it runs, for messages."""
        return self.spec.command[0] if self.spec.command else ""

    def _lead(self, control: socket.socket, outer: int) -> Started:
        return converse(control, lambda init: self._attach(init, outer), self.command)

    def _posix_spawn(
        self, invocation: Invocation, control: socket.socket, errors: int, keep: Keep
    ) -> int:
        null = keep(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        wanted = {
            0: null,
            1: null,
            2: null,
            STATUS_FD: keep(os.open(self.directory.status_file, flags, 0o600)),
            CONTROL_FD: control.fileno(),
            IN_FD: self.spec.stdin_fd if self.spec.stdin_fd >= 0 else null,
            OUT_FD: self.spec.stdout_fd if self.spec.stdout_fd >= 0 else null,
            ERR_FD: self.spec.stderr_fd if self.spec.stderr_fd >= 0 else null,
            INIT_FD: self.shared.init_fd,
            **invocation.fds,
            invocation.errors_fd: errors,
        }
        actions: list[tuple[int, int, int]] = []
        try:
            for target, source in wanted.items():
                high = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
                actions.append((os.POSIX_SPAWN_DUP2, high, target))
            with invocation.view():
                return os.posix_spawn(
                    invocation.path,
                    [outer_name(self.shared.token, self.spec.id), *invocation.arguments],
                    {"PATH": DEFAULT_PATH},
                    file_actions=actions,
                    setsid=True,
                    setsigmask=(),
                    setsigdef=_DEFAULT_SIGNALS,
                )
        finally:  # at once: a tool that fails shows by the last copy being closed
            for _, high, _ in actions:
                os.close(high)

    def _attach(self, pid: int, outer: int) -> None:
        if self.cgroup is not None and not self._tool.joins_groups:
            self.cgroup.attach_unified(pid)
        self.inside = Inside(self._tool.files_process(self, pid, outer))
        if self.inside.pid != pid:
            self.files_fd = os.pidfd_open(self.inside.pid)
        self.mount_data()

    def mount_data(self) -> None:
        """Mount what of its data comes late, when the rest is there."""
        for overlay in self.spec.overlays:
            self.shared.stage.mount_inside(self.inside, overlay)
        for tree in self.spec.trees:
            self.shared.stage.place_inside(self.inside, tree)

    def _undo(self) -> None:
        if self.files_fd >= 0:
            os.close(self.files_fd)
            self.files_fd = -1
        if self.cgroup is not None:
            with contextlib.suppress(CgroupError):
                self.cgroup.remove()
        self._tool.clean(self.spec.id)
        remove_tree(self.work)
        if self.root is not None and self.root.made_upper:
            remove_tree(self.spec.upper)
        self.directory.remove()


def _end(pid: int) -> None:
    """Wait for the tool, whose init is gone, to end; not for ever."""
    fd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not poller.poll(_END_TIMEOUT_MS):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(fd)
