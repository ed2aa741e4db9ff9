"""Limits on containers by control groups: v2, v1 and both at once (hybrid), by plain file writes.

One group a container, ``<parent>/<name>`` under each hierarchy used, so that everything of a node
is found (and removed) under one parent. All calls are quick file operations; call them off the
event loop.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from homeport.kernel.resources import Limits

DEFAULT_ROOT: Final = Path("/sys/fs/cgroup")
CONTROLLERS: Final = ("cpu", "cpuacct", "memory", "pids")
OCI_SUFFIX: Final = ".oci"
"""What the name of a group that an OCI runtime makes for itself ends with."""
INNER_GROUP: Final = "tool"
"""Name of such a group where it is inside the container's (v2)."""
_MB: Final = 1024 * 1024
_PERIOD_US: Final = 100_000
_QUOTA_MIN_US: Final = 1_000
_REMOVE_ATTEMPTS: Final = 50


class CgroupError(Exception):
    """A group could not be made or limited; the message names the file."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which hierarchies there are under ``/sys/fs/cgroup``.

    ``v1`` maps a controller to its hierarchy's directory; ``unified`` is the v2 mount (in hybrid
    mode one without these controllers, still good for killing); ``v2`` are its usable controllers.
    """

    v1: dict[str, Path] = field(default_factory=dict[str, Path])
    unified: Path | None = None
    v2: frozenset[str] = frozenset()

    @property
    def version(self) -> str:
        """``v1``, ``hybrid``, ``v2`` or ``none``."""
        if self.unified is None:
            return "v1" if self.v1 else "none"
        return "hybrid" if self.v1 else "v2"

    def missing(self) -> list[str]:
        """Controllers that limits need and this machine (or delegation) does not offer."""
        return [
            name
            for name in ("cpu", "memory", "pids")
            if name not in self.v1 and name not in self.v2
        ]


def detect(root: Path = DEFAULT_ROOT) -> Layout:
    """Look at what is mounted under ``root``."""
    if (root / "cgroup.controllers").exists():
        return Layout({}, root, _read_words(root / "cgroup.controllers"))
    v1 = {name: root / name for name in CONTROLLERS if (root / name / "cgroup.procs").exists()}
    unified = root / "unified"
    if (unified / "cgroup.controllers").exists():
        return Layout(v1, unified, _read_words(unified / "cgroup.controllers"))
    return Layout(v1)


def own_group(unified_root: Path) -> Path:
    """The v2 group of this process, which a user session may have been delegated."""
    return unified_root / _unified_group("self").lstrip("/")


def _unified_group(pid: int | Literal["self"]) -> str:
    """The path of the group of version 2 that a process is in; empty if that is not known."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:].strip()
    return ""


def _own_procs(root: Path) -> Path:
    """``cgroup.procs`` of a group that this process is in. Raises ``CgroupError``."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if controllers else ("unified", ""):
            procs = root / name.removeprefix("name=") / path.lstrip("/") / "cgroup.procs"
            if procs.exists():
                return procs
    raise CgroupError("this process is in no control group that is mounted")


_FREEZE_S: Final = 5.0


class Cgroup:
    """The groups of one container."""

    def __init__(self, name: str, v1: dict[str, Path], v2: Path | None, v2_limits: bool) -> None:
        self.name = name
        self._v1 = v1
        self._v2 = v2
        self._v2_limits = v2_limits
        self._oom_before = 0
        self._holder = v2
        """The group of version 2 that its processes are in."""

    def paths(self) -> list[Path]:
        """Every directory of this group."""
        return [*dict.fromkeys(self._v1.values()), *([self._v2] if self._v2 else [])]

    def tasks_files(self) -> list[Path]:
        """What a process with one thread writes ``0`` into to join (v1): it waits for no lock."""
        return [path / "tasks" for path in dict.fromkeys(self._v1.values())]

    def self_files(self) -> list[Path]:
        """The same of all groups; for that of version 2 it has to wait."""
        return [*self.tasks_files(), *([self._v2 / "cgroup.procs"] if self._v2 else [])]

    def create(self, limits: Limits) -> None:
        """Make the directories and write the limits. Raises ``CgroupError``."""
        for path in self.paths():
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CgroupError(f"cannot create the control group {path}: {error}") from error
        self.limit(limits)
        self._oom_before = self._oom_counter()

    def limit(self, limits: Limits) -> None:
        """Write the limits; what has none stays as it is. Raises ``CgroupError``."""
        self._limit_memory(limits)
        self._limit_cpu(limits)
        if limits.pids:
            self._write("pids", "pids.max", str(limits.pids))

    def attach_unified(self, pid: int) -> None:
        """Move a process that joined the others itself into the group of version 2.

        It must not have children yet. One that a tool has put into a group inside this one, or
        beside it, stays there. Raises ``CgroupError``.
        """
        if self._v2 is None:
            return
        if not self._v1 and pid in self.processes():
            return
        beside = f"{self._v2.name}{OCI_SUFFIX}"
        if self._v1 and _unified_group(pid).endswith(f"/{beside}"):
            self._holder = self._v2.with_name(beside)
            return
        _write(self._v2 / "cgroup.procs", str(pid))

    def processes(self) -> set[int]:
        """Host pids in the group and in groups inside it."""
        found: set[int] = set()
        for path in self.paths():
            for directory, _, _ in os.walk(path):
                found.update(_pids(Path(directory)))
        return found

    def kill(self) -> None:
        """SIGKILL everything in the group."""
        if self._holder is not None and (self._holder / "cgroup.kill").exists():
            with contextlib.suppress(CgroupError):
                _write(self._holder / "cgroup.kill", "1")
                if not self._v1:
                    return
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, 9)

    def oom_killed(self) -> bool:
        """Whether the kernel killed something here for lack of memory (its counter moved)."""
        return self._oom_counter() > self._oom_before

    def memory_current(self) -> int:
        """Bytes in use now; 0 where it cannot be known."""
        return self._read_number("memory", "memory.usage_in_bytes", "memory.current")

    def memory_peak(self) -> int:
        """Most bytes ever in use; 0 where it cannot be known (v2 before Linux 5.19)."""
        return self._read_number("memory", "memory.max_usage_in_bytes", "memory.peak")

    def cpu_ns(self) -> int:
        """Processor time used, in nanoseconds."""
        if "cpuacct" in self._v1:
            return _read_int(self._v1["cpuacct"] / "cpuacct.usage")
        if self._v2 is not None:
            return _read_keyed(self._v2 / "cpu.stat", "usage_usec") * 1000
        return 0

    def freeze(self) -> None:
        """Hold every process in the group; returns when all stand still. Raises ``CgroupError``.

        Blocks for as long as that takes.
        """
        self._set_frozen(True)

    def thaw(self) -> None:
        """Let them go on. Raises ``CgroupError``."""
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        if self._holder is None or not (self._holder / "cgroup.freeze").exists():
            raise CgroupError(
                "no control group hierarchy (v2) here can hold a container's processes"
            )
        _write(self._holder / "cgroup.freeze", "1" if frozen else "0")
        deadline = time.monotonic() + _FREEZE_S
        while _read_keyed(self._holder / "cgroup.events", "frozen") != int(frozen):
            if time.monotonic() > deadline:
                if frozen:
                    _write(self._holder / "cgroup.freeze", "0")
                raise CgroupError(f"the processes in {self._holder} do not stand still")
            time.sleep(0.001)

    def remove(self) -> None:
        """Kill what is left and remove the directories. Raises ``CgroupError`` if it cannot."""
        self.kill()
        for path in self.paths():
            _remove_tree(path)

    def _limit_memory(self, limits: Limits) -> None:
        if not limits.memory_mb:
            return
        amount = str(limits.memory_mb * _MB)
        if "memory" in self._v1:
            self._write("memory", "memory.limit_in_bytes", amount)
            # memory and swap together: no swap on top (not there without swap accounting)
            with contextlib.suppress(CgroupError):
                self._write("memory", "memory.memsw.limit_in_bytes", amount)
            return
        self._write("memory", "memory.max", amount)
        for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            with contextlib.suppress(CgroupError):
                self._write("memory", name, value)

    def _limit_cpu(self, limits: Limits) -> None:
        if limits.milli_cpu:
            if "cpu" in self._v1:
                self._write("cpu", "cpu.shares", str(cpu_shares(limits.milli_cpu)))
            else:
                self._write("cpu", "cpu.weight", str(cpu_weight(limits.milli_cpu)))
        if limits.milli_cpu_max:
            quota = max(_QUOTA_MIN_US, limits.milli_cpu_max * _PERIOD_US // 1000)
            if "cpu" in self._v1:
                self._write("cpu", "cpu.cfs_period_us", str(_PERIOD_US))
                self._write("cpu", "cpu.cfs_quota_us", str(quota))
            else:
                self._write("cpu", "cpu.max", f"{quota} {_PERIOD_US}")

    def _write(self, controller: str, name: str, value: str) -> None:
        if controller in self._v1:
            _write(self._v1[controller] / name, value)
        elif self._v2 is not None and self._v2_limits:
            _write(self._v2 / name, value)
        else:
            raise CgroupError(
                f"no control group hierarchy offers {controller!r} here, so a container's "
                f"{controller} cannot be limited; as a normal user run the node in a delegated "
                "scope (systemd-run --user --scope -p Delegate=yes)"
            )

    def _oom_counter(self) -> int:
        if "memory" in self._v1:
            return _read_keyed(self._v1["memory"] / "memory.oom_control", "oom_kill")
        if self._v2 is not None and self._v2_limits:
            return _read_keyed(self._v2 / "memory.events", "oom_kill")
        return 0

    def _read_number(self, controller: str, v1_name: str, v2_name: str) -> int:
        if controller in self._v1:
            return _read_int(self._v1[controller] / v1_name)
        return _read_int(self._v2 / v2_name) if self._v2 is not None else 0


class CgroupProvider:
    """Makes groups under ``homeport/<owner>`` of each hierarchy.

    ``owner`` tells nodes of one machine apart. With ``required=False`` (a normal user without a
    delegated group) containers without limits still start; asking for a limit raises.
    """

    def __init__(
        self, owner: str, root: Path = DEFAULT_ROOT, *, delegated: bool | None = None
    ) -> None:
        self._owner = owner
        self._root = root
        self.layout = detect(root)
        if delegated is None:
            delegated = os.geteuid() != 0
        self._v2_base = self.layout.unified
        v1 = self.layout.v1
        if delegated:
            v1 = {}
            self._v2_base = self._delegated_base()
        self._v1_base = v1
        self._v2_limits = self._v2_base is not None and not v1
        self._ready = False
        self._own: Path | None = None

    @property
    def owner(self) -> str:
        """The name of the group that all groups of this provider are in."""
        return self._owner

    def available(self) -> bool:
        """Whether groups with limits can be made."""
        return bool(self._v1_base) or self._v2_base is not None

    @property
    def unified_only(self) -> bool:
        """Whether there is one hierarchy (v2), in which a process is in one group only."""
        return not self._v1_base

    def prepare(self) -> None:
        """Make the parents and, on v2, switch the controllers on for children."""
        if self._ready:
            return
        for base in dict.fromkeys(self._v1_base.values()):
            _make(base / "homeport" / self._owner)
        if self._v2_base is not None:
            if self._v2_limits:
                _enable(self._v2_base)
            _make(self._v2_base / "homeport")
            if self._v2_limits:
                _enable(self._v2_base / "homeport")
            _make(self._v2_base / "homeport" / self._owner)
            if self._v2_limits:
                _enable(self._v2_base / "homeport" / self._owner)
        self._ready = True

    def group(self, name: str) -> Cgroup:
        """The group called ``name``, made or not."""
        v1 = {
            controller: base / "homeport" / self._owner / name
            for controller, base in self._v1_base.items()
        }
        v2 = self._v2_base / "homeport" / self._owner / name if self._v2_base else None
        return Cgroup(name, v1, v2, self._v2_limits)

    def create(self, name: str, limits: Limits) -> Cgroup:
        """A new group with ``limits``. Raises ``CgroupError``."""
        self.prepare()
        group = self.group(name)
        try:
            group.create(limits)
        except CgroupError:
            group.remove()
            raise
        return group

    def remove(self, name: str) -> None:
        """Kill and remove the group ``name`` wherever it exists, also in other hierarchies."""
        group = self.group(name)
        group.remove()
        for path in self._root.glob(f"*/homeport/{self._owner}/{name}"):
            _remove_tree(path)

    def names(self) -> set[str]:
        """Names of all groups of this owner that exist."""
        found: set[str] = set()
        for parent in self.parents():
            with contextlib.suppress(OSError):
                found.update(entry.name for entry in parent.iterdir() if entry.is_dir())
        return found

    def parents(self) -> list[Path]:
        """The owner's directory in every hierarchy."""
        bases = [*dict.fromkeys(self._v1_base.values())]
        if self._v2_base is not None:
            bases.append(self._v2_base)
        return [base / "homeport" / self._owner for base in bases]

    def hasten(self) -> None:
        """Have processes move into groups at once for the next milliseconds; returns then.

        Moving one waits for a lock that the kernel makes cheap for forks, and so slow to take: the
        first to take it waits for all processors to be past what they do, those who come soon after
        do not. So this process is moved to where it is, while others still prepare what they move.
        """
        with contextlib.suppress(CgroupError):
            if self._own is None:
                self._own = _own_procs(self._root)
            _write(self._own, str(os.getpid()))

    def close(self) -> None:
        """Remove the parents if nothing is in them, also those an OCI runtime made."""
        self._ready = False
        strays = self._root.glob(f"*/homeport/{self._owner}")
        for parent in (*self.parents(), *strays):
            for path in (parent, parent.parent):
                with contextlib.suppress(OSError):
                    path.rmdir()

    def _delegated_base(self) -> Path | None:
        if self.layout.unified is None:
            return None
        group = own_group(self.layout.unified)
        for candidate in (group, group.parent):
            if (
                os.access(candidate, os.W_OK)
                and os.access(candidate / "cgroup.subtree_control", os.W_OK)
                and {"memory", "pids"} <= _read_words(candidate / "cgroup.controllers")
            ):
                return candidate
        return None


def all_groups(root: Path = DEFAULT_ROOT) -> Iterator[Path]:
    """Every existing group of any Homeport node on the machine, innermost first."""
    for top in (root / "homeport", *sorted(root.glob("*/homeport"))):
        for directory, _, _ in os.walk(top, topdown=False):
            yield Path(directory)


def cpu_shares(milli_cpu: int) -> int:
    """v1 ``cpu.shares`` for a guaranteed amount: 1024 a core, at least 2."""
    return max(2, min(262_144, milli_cpu * 1024 // 1000))


def cpu_weight(milli_cpu: int) -> int:
    """v2 ``cpu.weight``: 100 a core, between 1 and 10000."""
    return max(1, min(10_000, milli_cpu // 10))


def _enable(group: Path) -> None:
    """Offer the controllers to ``group``'s children; says which process is in the way."""
    offered = _read_words(group / "cgroup.controllers")
    active = _read_words(group / "cgroup.subtree_control")
    for name in ("cpu", "memory", "pids"):
        if name in offered and name not in active:
            _write(group / "cgroup.subtree_control", f"+{name}")


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CgroupError(f"cannot create the control group {path}: {error}") from error


def _write(path: Path, value: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CgroupError(f"cannot open {path}: {error.strerror}") from error
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise CgroupError(f"cannot write {value!r} to {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def _read_words(path: Path) -> frozenset[str]:
    try:
        return frozenset(path.read_text().split())
    except OSError:
        return frozenset()


def _read_int(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _read_keyed(path: Path, key: str) -> int:
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def _pids(path: Path) -> set[int]:
    try:
        return {int(word) for word in (path / "cgroup.procs").read_text().split()}
    except OSError:
        return set()


def _remove_tree(path: Path) -> None:
    """Remove a group and groups made inside it; processes that are just dying get a moment."""
    for attempt in range(_REMOVE_ATTEMPTS):
        try:
            for directory, _, _ in os.walk(path, topdown=False):
                os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if attempt == _REMOVE_ATTEMPTS - 1:
                raise CgroupError(f"cannot remove the control group {path}: {error}") from error
            time.sleep(0.002 * (attempt + 1))
