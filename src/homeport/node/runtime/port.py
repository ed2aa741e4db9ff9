"""The port behind which isolation tools start containers.

One implementation a tool (``bubblewrap.py``, ``oci.py``); all pass ``tests/contract/test_runtime.py``.
A runtime never falls back to weaker isolation than its ``Capabilities`` say: what it cannot give
raises ``RuntimeUnavailableError`` with the fix.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from homeport.kernel.resources import Limits

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where a container looks for programs when its image does not say."""


class RuntimeUnavailableError(Exception):
    """This machine cannot run containers this way; the message says what to install or change."""


class ContainerStartError(Exception):
    """The tool refused to start this container; the message carries the tool's own words."""


class CheckpointError(Exception):
    """A container's memory could not be saved, and it is gone; the message says why."""


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or directory of the host at ``target`` in the container."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Device:
    """A device file of the host at ``target`` in the container.

    ``kind`` (``c`` or ``b``) and the numbers are the host's; ``access`` is of ``r``, ``w``, ``m``.
    """

    source: Path
    target: str
    kind: str
    major: int
    minor: int
    access: str = "rw"


@dataclass(frozen=True, slots=True)
class Hook:
    """A program of the host that an OCI runtime runs at ``stage`` of a start."""

    stage: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout_s: int | None = None


@dataclass(frozen=True, slots=True)
class Overlay:
    """Directories of data at ``target`` in a container, as one tree; more can come while it runs.

    ``lowers`` (lowest first) are read-only and shared; ``upper`` takes this container's writes
    (``None``: the tree is read-only), ``work`` belongs to it and is made anew. Only ``subdirectory``
    of the tree is mounted, if it is given. ``target`` must be the target of a ``Bind``, which shows
    while nothing is mounted there; ``link`` becomes a symbolic link to it.
    """

    target: str
    link: str
    lowers: tuple[Path, ...]
    upper: Path | None
    work: Path
    subdirectory: str = ""


@dataclass(frozen=True, slots=True)
class ImageTree:
    """An image's ``layers`` (lowest first, read-only, shared) for ``target`` of a running container.

    ``upper`` takes what the container writes there, ``work`` belongs to it; the caller makes both.
    """

    target: str
    layers: tuple[Path, ...]
    upper: Path
    work: Path


@dataclass(frozen=True, slots=True)
class MountedImage:
    """An ``ImageTree`` that is mounted: where, without symbolic links, and its device number."""

    path: str
    device: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A file system that is mounted nowhere (``linux.clone_mount``), for ``target`` in a container.

    ``target`` must be the target of a ``Bind``. The descriptor stays the caller's.
    """

    fd: int
    target: str


@dataclass(frozen=True, slots=True)
class Egress:
    """All that a container may reach: ``networks`` (``a.b.c.d/n``), and TLS servers of ``domains``.

    Domains are patterns of ``kernel.domains``.
    """

    networks: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container to start.

    The root file system is an overlay: ``layers`` (lowest first, read-only, shared) under
    ``upper`` (this container's writes; the runtime creates it and a sibling work directory).
    After ``remove()`` with ``keep_upper`` the caller owns ``upper`` (an image build commits it).
    """

    id: str
    layers: tuple[Path, ...]
    upper: Path
    command: tuple[str, ...]
    """Empty: nothing runs, until ``kill``."""
    env: dict[str, str]
    workdir: str = "/"
    user: str = ""
    """``uid``, ``name``, ``uid:gid`` or empty for root, resolved in the image's /etc/passwd."""
    hostname: str = ""
    limits: Limits = field(default_factory=Limits)
    binds: tuple[Bind, ...] = ()
    network: str = "nat"
    """``nat`` (an ``eth0`` with a way out), ``none`` (loopback only), ``host`` (builds only)."""
    egress: Egress | None = None
    """All that it may reach by ``nat``; ``None`` = everything."""
    stdin_fd: int = -1
    """Open descriptor that the command reads; -1 = /dev/null."""
    stdout_fd: int = -1
    stderr_fd: int = -1
    """Open descriptors the container's output goes to (the caller's pipes); -1 = /dev/null."""
    tmpfs: tuple[str, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    trees: tuple[Tree, ...] = ()
    devices: tuple[Device, ...] = ()
    hooks: tuple[Hook, ...] = ()
    """Only OCI runtimes run them."""
    groups: tuple[int, ...] = ()
    """Numbers of further groups that its command is in."""
    can_checkpoint: bool = False
    """``Container.checkpoint`` will be possible: its streams are pipes, and nothing is mounted late."""
    is_repeated: bool = False
    """More containers of these layers are likely: the runtime has root file systems for them ready."""
    checkpoint: Path | None = None
    """It goes on where that checkpoint was taken, of one with the same files and the same spec."""


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """One more process for a running container, with its user, limits and rights.

    ``env`` is added to the container's own. The descriptors are the caller's; -1 = /dev/null.
    With ``terminal`` (rows, columns) it gets a terminal of the container instead of them.
    """

    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict[str, str])
    workdir: str = ""
    """Empty: the container's own."""
    stdin_fd: int = -1
    stdout_fd: int = -1
    stderr_fd: int = -1
    terminal: tuple[int, int] | None = None


class ExecError(Exception):
    """The process could not be started; ``number`` is an errno if there was one."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


class ContainerEndedError(ExecError):
    """There is no container to start it in any more."""

    def __init__(self) -> None:
        super().__init__("the container has ended")


class Process(Protocol):
    """A process started by ``Container.exec``; leader of a session and group of its own."""

    @property
    def pid(self) -> int:
        """Its pid on the host."""
        ...

    @property
    def terminal_fd(self) -> int:
        """The master of its terminal, the caller's from now on; -1 without one."""
        ...

    async def wait(self) -> int:
        """Its return code, negative for a signal. It need not be asked for."""
        ...

    def kill(self) -> None:
        """SIGKILL it and its process group."""
        ...


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended. ``returncode`` is negative for a signal (-9 = SIGKILL).

    ``oom_killed`` only if the kernel's own counter for this container moved.
    """

    returncode: int
    oom_killed: bool
    memory_limit_mb: int = 0


class Container(Protocol):
    """A started container. All methods may be called after its end."""

    @property
    def id(self) -> str: ...

    @property
    def pid(self) -> int:
        """Host pid of the container's first process (its init)."""
        ...

    @property
    def address(self) -> str:
        """IPv4 address of its ``eth0``; empty without one."""
        ...

    @property
    def netns(self) -> str:
        """Path under which its network namespace can be joined (``/proc/PID/ns/net`` or a bind)."""
        ...

    @property
    def peer_address(self) -> str:
        """Where other containers of its sandbox reach it, whatever link they come by.

        Empty if it has the address of each link: its network stack is the kernel's. Another one
        has the interfaces of its start only, and the kernel in ``netns`` forwards to it.
        """
        ...

    def memory_bytes(self) -> int:
        """What its processes use now; 0 if that is not known."""
        ...

    def adopt(self, env: Mapping[str, str]) -> None:
        """It has this environment from now on: programs that ``exec`` starts get it."""
        ...

    async def mount(self, overlay: Overlay) -> None:
        """Mount ``overlay`` in the running container. Raises ``ContainerStartError``."""
        ...

    async def unmount(self, target: str) -> bool:
        """Unmount an overlay; False if a process of the container uses it (open files, cwd)."""
        ...

    async def mount_image(self, tree: ImageTree) -> MountedImage:
        """Mount ``tree`` in the running container, over what is there; its target is made.

        Raises ``ContainerStartError``.
        """
        ...

    async def unmount_image(self, mounted: MountedImage) -> bool:
        """Take it away; False if a process of the container uses it (open files, cwd).

        What is not there any more is no error. Raises ``ContainerStartError``.
        """
        ...

    async def open_directory(self, path: str) -> int:
        """A descriptor (for reading, the caller's) of a directory as the container sees it.

        Raises ``OSError``.
        """
        ...

    async def exec(self, spec: ExecSpec) -> Process:
        """Start one more process in it. Raises ``ExecError``."""
        ...

    async def connect(self, port: int) -> socket.socket:
        """A connection to what listens on a TCP port of its own loopback address.

        Raises ``OSError``: ``ConnectionRefusedError`` while nothing listens there.
        """
        ...

    async def is_listening(self, port: int) -> bool:
        """Whether something in it listens on a TCP port."""
        ...

    async def serve_files(self, channel: socket.socket) -> None:
        """Have a process answer file commands on ``channel`` (see ``files_worker.py``).

        It sees the container's files and has its user's rights to them, no others; it ends when
        the other end of ``channel`` is closed, or with the container. Raises ``ExecError``.
        """
        ...

    def usage(self) -> tuple[float, int]:
        """Processor seconds used, bytes of memory in use now; 0 where that is not counted."""
        ...

    async def restrict(self, egress: Egress | None) -> None:
        """Change ``ContainerSpec.egress`` now, for open connections too.

        Raises ``RuntimeUnavailableError``.
        """
        ...

    async def freeze(self) -> None:
        """Hold all its processes until ``thaw``. Raises ``RuntimeUnavailableError``."""
        ...

    async def thaw(self) -> None:
        """Let its processes go on."""
        ...

    async def checkpoint(self, directory: Path) -> None:
        """Write its memory and all its processes into ``directory``, and end it.

        Programs that ``exec`` started are part of it, without their streams. Raises
        ``RuntimeUnavailableError`` where that cannot be done; then it goes on.
        ``CheckpointError``: it has ended, and there is no checkpoint.
        """
        ...

    async def wait(self) -> Exit:
        """Until its command ended (not until its pipes close) and all its processes are gone."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to the container's *command* (e.g. SIGINT to the entrypoint)."""
        ...

    def kill(self) -> None:
        """SIGKILL every process of the container."""
        ...

    async def remove(self, *, keep_upper: bool = False) -> None:
        """Undo everything: mounts, cgroup, network, directories. Idempotent; kills first."""
        ...


class Runtime(Protocol):
    """Starts containers with one isolation tool."""

    @property
    def name(self) -> str:
        """``bubblewrap``, ``runc``, ``crun``, ``runsc``."""
        ...

    async def start(self, spec: ContainerSpec) -> Container:
        """Start it. Raises ``ContainerStartError`` or ``RuntimeUnavailableError``."""
        ...

    async def sweep(self) -> int:
        """Undo what containers of an earlier, crashed node left behind; returns how many."""
        ...
