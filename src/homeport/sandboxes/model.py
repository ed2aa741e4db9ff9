"""What is asked of a sandbox, what is recorded of it, and how its end is told. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from homeport.kernel import ids
from homeport.kernel.errors import InvalidError, UnimplementedError
from homeport.kernel.gpus import GpuWish
from homeport.link.messages import (
    STATUS_FAILURE,
    STATUS_IDLE_TIMEOUT,
    STATUS_INIT_FAILURE,
    STATUS_INTERNAL_FAILURE,
    STATUS_OUT_OF_MEMORY,
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    STATUS_TIMEOUT,
    BucketRef,
    ProbeRef,
    TaskExited,
    TerminalRef,
    VolumeRef,
)

TIMEOUT_DEFAULT_S: Final = 300.0
TIMEOUT_MAX_S: Final = 24 * 3600.0
ARGUMENTS_MAX: Final = 65_536
"""Characters of all arguments of a sandbox's command together."""
NAME_MAX: Final = 64
TAGS_MAX: Final = 256
TAGS_BYTES_MAX: Final = 64 * 1024
"""Names and values of all tags of a sandbox together."""
CONNECT_PORT: Final = 8080
"""Where a connect token leads that does not say."""
USER_DATA_BYTES_MAX: Final = 4096
"""A token is a header of HTTP, of which servers take some 8 KiB."""
PAGE_MAX: Final = 100
"""Sandboxes in one page of a list."""

GVISOR: Final = "runsc"
"""The runtime of which a sandbox has a kernel of its own, and which can save its memory."""
GVISOR_MB: Final = 24
"""What that kernel takes of the machine's memory itself, in an idle sandbox."""

EXIT_TIMEOUT: Final = 124
EXIT_KILLED: Final = 137
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")


class SecretRef(msgspec.Struct, frozen=True, array_like=True):
    """Variables of a named secret, or those sent with the sandbox (``sealed`` with its id)."""

    secret_id: str = ""
    sealed: bytes = b""


class Port(msgspec.Struct, frozen=True, array_like=True):
    """A port that is reached from outside."""

    number: int
    unencrypted: bool = False
    h2: bool = False


class Tunnel(msgspec.Struct, frozen=True, array_like=True):
    """Ports of the node that lead to ``port``: with TLS, and without (0 = not wanted).

    ``host`` is where the one with TLS is; empty = at the node's usual name.
    """

    port: int
    encrypted: int
    plain: int = 0
    host: str = ""


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox was asked to be. Times in seconds; 0 = the default or none."""

    image_id: str
    command: list[str] = []
    mount_ids: list[str] = []
    secrets: list[SecretRef] = []
    milli_cpu: int = 0
    milli_cpu_max: int = 0
    memory_mb: int = 0
    memory_mb_max: int = 0
    gpu_type: str = ""
    gpu_count: int = 0
    timeout_s: float = TIMEOUT_DEFAULT_S
    idle_timeout_s: float = 0.0
    workdir: str = ""
    volumes: list[VolumeRef] = []
    directories: list[tuple[str, str]] = []
    """Network file systems: (id, where)."""
    buckets: list[BucketRef] = []
    bucket_secrets: dict[str, SecretRef] = {}
    """Credentials that were sent with the sandbox, by where the bucket is mounted."""
    block_network: bool = False
    allowed_cidrs: list[str] | None = None
    """``None``: it may reach everything."""
    allowed_domains: list[str] = []
    allowed_sources: list[str] = []
    """Networks from which its tunnels may be used; none = all."""
    ports: list[Port] = []
    probe: ProbeRef | None = None
    terminal: TerminalRef | None = None
    runtime: str = ""
    """The only one it may run under; empty = its node's choice."""
    exit_snapshot: bool = False
    """Its files become an image when it ends."""
    memory_snapshots: bool = False
    """They can be taken of it: it runs under gVisor."""
    memory_image_id: str = ""
    """It goes on from that memory, an image of one layer."""

    @property
    def needs_gvisor(self) -> bool:
        """Whether it runs under gVisor or not at all."""
        return self.memory_snapshots or self.runtime == GVISOR

    @property
    def gpus(self) -> list[GpuWish]:
        """The GPUs it is to have; none without."""
        return [GpuWish(self.gpu_type, self.gpu_count)] if self.gpu_count else []


class SandboxResult(msgspec.Struct, frozen=True, array_like=True):
    """How it ended: a ``STATUS_*`` number of the link, an exit code, a sentence."""

    status: int
    exitcode: int
    exception: str = ""


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox's life. Times are Unix seconds, 0 = not yet; ``created_at`` is its own alone."""

    sandbox_id: str
    task_id: str
    app_id: str
    is_v2: bool
    name: str
    tags: dict[str, str]
    spec: SandboxSpec
    created_at: float
    node_id: str = ""
    """Where it was placed; empty while it waits for room."""
    started_at: float = 0.0
    ready_at: float = 0.0
    terminated_at: float = 0.0
    """When somebody ended it."""
    finished_at: float = 0.0
    result: SandboxResult | None = None
    log_position: int = 0
    """Its output has log entries beyond this id."""
    exit_image_id: str = ""
    """The image of its files at its end, once that is there."""

    @property
    def is_over(self) -> bool:
        return self.result is not None

    @property
    def is_named(self) -> bool:
        """Whether its name is its own: from its creation until it is ended or ends."""
        return bool(self.name) and not self.terminated_at and self.result is None


def new_ids(seed: str, *, is_v2: bool) -> tuple[str, str]:
    """The ids of a new sandbox and of its task: the same for the same ``seed``; empty = fresh.

    Clients choose the generation of RPCs by the shapes.
    """
    seed = seed or ids.new(ids.SANDBOX)
    make = ids.derive_ulid if is_v2 else ids.derive
    return make(ids.SANDBOX, seed), ids.derive_task(seed, sandbox_v2=is_v2)


def exit_image_id(task_id: str) -> str:
    """The image that a sandbox's files become when it ends."""
    return ids.derive(ids.IMAGE, "exit", task_id)


def check_spec(spec: SandboxSpec) -> None:
    """Raise ``InvalidError`` for what cannot be."""
    if not spec.image_id:
        raise InvalidError("a sandbox needs an image")
    if sum(len(word) for word in spec.command) > ARGUMENTS_MAX:
        raise InvalidError(f"the command of a sandbox has at most {ARGUMENTS_MAX} characters")
    if any("\0" in word for word in spec.command):
        raise InvalidError("the command of a sandbox cannot contain a NUL character")
    if spec.workdir and not posixpath.isabs(spec.workdir):
        raise InvalidError(f"the working directory {spec.workdir!r} is not an absolute path")
    if not 0 < spec.timeout_s <= TIMEOUT_MAX_S:
        raise InvalidError(f"a sandbox's timeout is between 1 and {TIMEOUT_MAX_S:g} seconds")
    if spec.ports and spec.block_network:
        raise InvalidError("a sandbox without a network cannot have open ports")
    for port in spec.ports:
        if not 0 < port.number < 65536:
            raise InvalidError(f"{port.number} is not a TCP port")
    if spec.memory_mb_max and spec.memory_mb_max < spec.memory_mb:
        raise InvalidError("the memory limit is below the memory asked for")
    if spec.milli_cpu_max and spec.milli_cpu_max < spec.milli_cpu:
        raise InvalidError("the CPU limit is below the CPU asked for")
    if spec.memory_snapshots:
        _check_memory(spec)
    elif spec.needs_gvisor and spec.gpu_count:
        raise UnimplementedError(
            'Homeport does not give GPUs to sandboxes under gVisor: leave out runtime="gvisor"'
        )
    if spec.probe is not None and not spec.probe.command and not 0 < spec.probe.tcp_port < 65536:
        raise InvalidError("a readiness probe needs a TCP port or a command")


def _check_memory(spec: SandboxSpec) -> None:
    hindrances = {
        "volumes": spec.volumes,
        "buckets": spec.buckets,
        "GPUs": spec.gpu_count,
        "a terminal (pty=True)": spec.terminal is not None,
    }
    for what, is_wanted in hindrances.items():
        if is_wanted:
            raise UnimplementedError(
                f"Homeport does not take memory snapshots of sandboxes with {what} yet: leave out "
                "that or _experimental_enable_snapshot"
            )


def check_name(name: str) -> None:
    """Raise ``InvalidError`` unless ``name`` can be a sandbox's."""
    if len(name) > NAME_MAX or not _NAME.fullmatch(name):
        raise InvalidError(
            f"{name[:80]!r} cannot be a sandbox's name: it has up to {NAME_MAX} letters, digits, "
            "dots, dashes and underscores"
        )


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise ``InvalidError`` unless these can be a sandbox's tags."""
    if "" in tags:
        raise InvalidError("a tag of a sandbox needs a name")
    if len(tags) > TAGS_MAX:
        raise InvalidError(f"a sandbox has at most {TAGS_MAX} tags, not {len(tags)}")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in tags.items())
    if size > TAGS_BYTES_MAX:
        raise InvalidError(
            f"the tags of a sandbox have at most {TAGS_BYTES_MAX} bytes together, not {size}"
        )


def check_connect(port: int, user_data: str) -> None:
    """Raise ``InvalidError`` unless a connect token can be made of these."""
    if not 0 < port < 65536:
        raise InvalidError(f"{port} is not a TCP port")
    if len(user_data.encode()) > USER_DATA_BYTES_MAX:
        raise InvalidError(
            f"the user_metadata of a connect token has at most {USER_DATA_BYTES_MAX} bytes"
        )
    if not user_data.isprintable():
        raise InvalidError(
            "the user_metadata of a connect token becomes a header of HTTP: it has no line breaks "
            "or other control characters"
        )


def has_tags(record: SandboxRecord, wanted: Mapping[str, str]) -> bool:
    """Whether the sandbox has all these tags."""
    return all(record.tags.get(name) == value for name, value in wanted.items())


def result_of(ended: TaskExited, *, terminated: bool, spec: SandboxSpec) -> SandboxResult:
    """What the node's report means."""
    if ended.cut_short == "timeout":
        text = f"The sandbox ran into its timeout of {spec.timeout_s:g} s"
        return SandboxResult(STATUS_TIMEOUT, EXIT_TIMEOUT, text)
    if ended.cut_short == "snapshot":
        text = "The sandbox ended when the memory snapshot of it was taken"
        return SandboxResult(STATUS_TERMINATED, EXIT_KILLED, text)
    if ended.cut_short == "idle":
        text = f"The sandbox was idle for {spec.idle_timeout_s:g} s"
        return SandboxResult(STATUS_IDLE_TIMEOUT, EXIT_KILLED, text)
    if terminated:
        return SandboxResult(STATUS_TERMINATED, EXIT_KILLED)
    if ended.start_failed:
        return SandboxResult(STATUS_INIT_FAILURE, 1, f"The sandbox did not start: {ended.reason}")
    if ended.oom_killed:
        text = (
            "Out of memory: the sandbox used more than its limit and was killed. Ask for more "
            "with memory=(request, limit)"
        )
        return SandboxResult(STATUS_OUT_OF_MEMORY, EXIT_KILLED, text)
    if ended.reason:
        return lost(ended.reason)
    if ended.returncode == 0:
        return SandboxResult(STATUS_SUCCESS, 0)
    code = ended.returncode if ended.returncode > 0 else 128 - ended.returncode
    return SandboxResult(STATUS_FAILURE, code)


def unstarted(reason: str) -> SandboxResult:
    """It never ran."""
    return SandboxResult(STATUS_INIT_FAILURE, 1, f"The sandbox did not start: {reason}")


def lost(reason: str) -> SandboxResult:
    """The machine under it is gone, or was told to stop."""
    return SandboxResult(STATUS_INTERNAL_FAILURE, EXIT_KILLED, f"The sandbox was lost: {reason}")
