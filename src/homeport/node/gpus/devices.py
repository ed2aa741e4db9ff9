"""GPUs on their way into containers: whose they are now, and what they change in a container."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from homeport.kernel.errors import UnavailableError
from homeport.kernel.gpus import Gpu
from homeport.node.gpus.cdi import CdiMount, DeviceNode, Edits
from homeport.node.gpus.inventory import NVIDIA, SET_UP, Inventory
from homeport.node.gpus.libraries import PLACE, links, make_directory
from homeport.node.runtime.port import Bind, Device, Hook

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

RUN_HOOKS: Final = frozenset({"runc", "crun"})
"""Runtimes that run the hooks of a specification."""
_WITHOUT: Final = frozenset({"runsc"})
_VISIBLE: Final = "NVIDIA_VISIBLE_DEVICES"
_LIBRARIES: Final = "LD_LIBRARY_PATH"
_HOOKS: Final = frozenset(
    {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}
)


@dataclass(frozen=True, slots=True)
class GpuChanges:
    """What a container needs besides, to have its GPUs."""

    devices: tuple[Device, ...] = ()
    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[str, ...] = ()
    hooks: tuple[Hook, ...] = ()
    groups: tuple[int, ...] = ()


NONE: Final = GpuChanges()


def check_runtime(name: str) -> None:
    """Raise ``UnavailableError`` for a runtime that gives containers no devices."""
    if name in _WITHOUT:
        raise UnavailableError(
            f"a container of {name} (gVisor) can have no GPU on Homeport: set sandbox_runtime to auto "
            "(sandboxes with a GPU have default_runtime then), or to bubblewrap, runc or crun"
        )


class NodeGpus:
    """The GPUs of this node. Each is held by one container at a time.

    Where a runtime does not run the hooks of a specification, the driver's libraries are made known
    by a directory under ``folder`` (see ``libraries.py``).
    """

    def __init__(self, inventory: Inventory, folder: Path) -> None:
        self._inventory = inventory
        self._folder = folder.absolute()
        self._held: dict[str, asyncio.Event] = {}
        """GPUs in use, with what is set when they are free again."""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Those that the server may give to containers."""
        return self._inventory.gpus

    def ready(self) -> None:
        """Make the directories of libraries. Blocks; called once, before the first container."""
        for problem in self._inventory.problems:
            log.warning("a GPU is not offered", found=problem.found, fix=problem.fix)
        for kind, edits in self._by_kind().items():
            make_directory(self._directory(kind), links(edits))

    async def hold(self, uuids: Sequence[str]) -> None:
        """Take these GPUs; those that a container has which is ending are waited for.

        Raises ``UnavailableError`` for one that is not here.
        """
        for uuid in uuids:
            if uuid not in self._inventory.devices:
                raise UnavailableError(f"this node has no GPU {uuid} any more")
        taken: list[str] = []
        try:
            for uuid in sorted(uuids):  # in one order, so that no two wait for each other
                while (busy := self._held.get(uuid)) is not None:
                    await busy.wait()
                self._held[uuid] = asyncio.Event()
                taken.append(uuid)
        except BaseException:
            self.release(taken)
            raise

    def release(self, uuids: Sequence[str]) -> None:
        """They are free again."""
        for uuid in uuids:
            free = self._held.pop(uuid, None)
            if free is not None:
                free.set()

    def environment(
        self, uuids: Sequence[str], given: Mapping[str, str], runtime: str
    ) -> dict[str, str]:
        """The variables to set in a container that has the environment ``given``."""
        edits = self._edits(uuids)
        env: dict[str, str] = {}
        for text in edits.env:
            name, _, env[name] = text.partition("=")
        devices = [self._inventory.devices[uuid] for uuid in uuids]
        if any(device.kind == NVIDIA for device in devices):
            names = zip(uuids, devices, strict=True)
            env[_VISIBLE] = ",".join(
                device.name if uuid == device.qualified else uuid for uuid, device in names
            )
        if self._linked(devices[0].kind, runtime):
            paths = [env.get(_LIBRARIES) or given.get(_LIBRARIES, ""), PLACE]
            if PLACE not in paths[0].split(":"):
                env[_LIBRARIES] = ":".join(path for path in paths if path)
        return env

    def changes(self, uuids: Sequence[str], runtime: str) -> GpuChanges:
        """What else to change. Blocks for a moment. Raises ``UnavailableError``."""
        edits = self._edits(uuids)
        binds = [_bind(mount) for mount in edits.mounts if mount.type != "tmpfs"]
        kind = self._inventory.devices[uuids[0]].kind
        if self._linked(kind, runtime):
            binds.append(Bind(self._directory(kind), PLACE))
        return GpuChanges(
            devices=tuple(_device(node) for node in edits.device_nodes),
            binds=tuple(binds),
            tmpfs=tuple(mount.container_path for mount in edits.mounts if mount.type == "tmpfs"),
            hooks=self._hooks(edits) if runtime in RUN_HOOKS else (),
            groups=tuple(edits.additional_gids),
        )

    def _hooks(self, edits: Edits) -> tuple[Hook, ...]:
        for hook in edits.hooks:
            if hook.hook_name not in _HOOKS:
                raise UnavailableError(
                    f"the GPU's CDI specification has a hook {hook.hook_name!r}, which is not one "
                    f"of {', '.join(sorted(_HOOKS))}: make the file anew"
                )
        return tuple(
            Hook(hook.hook_name, hook.path, tuple(hook.args), tuple(hook.env), hook.timeout)
            for hook in edits.hooks
        )

    def _edits(self, uuids: Sequence[str]) -> Edits:
        """Those of each device, and once those of their files."""
        whole = Edits()
        for uuid in uuids:
            whole += self._inventory.devices[uuid].common
        for uuid in uuids:
            whole += self._inventory.devices[uuid].own
        return whole

    def _by_kind(self) -> dict[str, Edits]:
        found: dict[str, Edits] = {}
        for device in self._inventory.devices.values():
            found[device.kind] = found.get(device.kind, Edits()) + device.common + device.own
        return found

    def _directory(self, kind: str) -> Path:
        return self._folder / kind.replace("/", "-")

    def _linked(self, kind: str, runtime: str) -> bool:
        return runtime not in RUN_HOOKS and kind == NVIDIA


def _bind(mount: CdiMount) -> Bind:
    source = Path(mount.host_path)
    if not source.exists():
        raise UnavailableError(
            f"the GPU's CDI specification names {source}, which is not on this machine (was the "
            f"driver changed?): {SET_UP}"
        )
    return Bind(source, mount.container_path, read_only="ro" in mount.options)


def _device(node: DeviceNode) -> Device:
    path = node.host_path or node.path
    try:
        found = os.stat(path)
    except OSError as error:
        raise UnavailableError(
            f"the GPU's device {path} cannot be used ({error.strerror}): does nvidia-smi work?"
        ) from None
    if not stat.S_ISCHR(found.st_mode) and not stat.S_ISBLK(found.st_mode):
        raise UnavailableError(f"{path}, of a GPU's CDI specification, is not a device")
    return Device(
        source=Path(path),
        target=node.path,
        kind="b" if stat.S_ISBLK(found.st_mode) else "c",
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        access=node.permissions or "rw",
    )
