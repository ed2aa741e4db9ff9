"""CDI specifications: what has to be done to a container so that it has a GPU.

The Container Device Interface is a vendor-neutral file format (``cncf-tags/container-device-interface``);
``nvidia-ctk cdi generate`` and AMD's toolkit write such files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import yaml

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CLASS: Final = "gpu"
"""The device class that counts: ``nvidia.com/gpu``, ``amd.com/gpu``."""
_MAJOR_VERSIONS: Final = frozenset({"0", "1"})
_FILE_BYTES_MAX: Final = 16 * 1024 * 1024


class CdiError(Exception):
    """A file is not a specification that can be followed; the message names it."""


class DeviceNode(msgspec.Struct, frozen=True, rename="camel"):
    """A device for a container. Numbers and type are those of ``host_path`` if they are not given."""

    path: str
    host_path: str = ""
    permissions: str = "rw"


class CdiMount(msgspec.Struct, frozen=True, rename="camel"):
    """A file or directory for a container."""

    host_path: str
    container_path: str
    options: list[str] = []
    type: str = ""


class CdiHook(msgspec.Struct, frozen=True, rename="camel"):
    """A program of the host to run at a stage of a container's start."""

    hook_name: str
    path: str
    args: list[str] = []
    env: list[str] = []
    timeout: int | None = None


class Edits(msgspec.Struct, frozen=True, rename="camel"):
    """Changes to a container."""

    env: list[str] = []
    device_nodes: list[DeviceNode] = []
    mounts: list[CdiMount] = []
    hooks: list[CdiHook] = []
    additional_gids: list[int] = msgspec.field(default_factory=list[int], name="additionalGids")

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            _joined(self.env, other.env),
            _joined(self.device_nodes, other.device_nodes),
            _joined(self.mounts, other.mounts),
            _joined(self.hooks, other.hooks),
            _joined(self.additional_gids, other.additional_gids),
        )


class _Device(msgspec.Struct, frozen=True, rename="camel"):
    name: str | int
    container_edits: Edits = Edits()


class _Specification(msgspec.Struct, frozen=True, rename="camel"):
    cdi_version: str
    kind: str
    devices: list[_Device] = []
    container_edits: Edits = Edits()


@dataclass(frozen=True, slots=True)
class CdiDevice:
    """A device of a specification. ``common`` is for every container with a device of that file."""

    kind: str
    name: str
    own: Edits
    common: Edits

    @property
    def qualified(self) -> str:
        return f"{self.kind}={self.name}"

    @property
    def vendor(self) -> str:
        return self.kind.partition("/")[0]

    @property
    def hooks(self) -> list[CdiHook]:
        return [*self.common.hooks, *self.own.hooks]

    @property
    def nodes(self) -> frozenset[str]:
        """Its own device files on the host: two names of one device have the same."""
        return frozenset(node.host_path or node.path for node in self.own.device_nodes)


@dataclass(slots=True)
class CdiRegistry:
    """The devices of all specifications, by kind and name, and what could not be read."""

    devices: dict[str, dict[str, CdiDevice]] = field(
        default_factory=dict[str, "dict[str, CdiDevice]"]
    )
    problems: list[str] = field(default_factory=list[str])

    def find(self, kind: str, *names: str) -> CdiDevice | None:
        """The device with the first of these names that there is."""
        known = self.devices.get(kind, {})
        return next((known[name] for name in names if name in known), None)


def read_folders(folders: Sequence[Path]) -> CdiRegistry:
    """All GPUs of the ``*.json`` and ``*.yaml`` files there; those of later folders win.

    A file that cannot be followed is left out, and named in ``problems``. So is a device that two
    files of one folder have: nobody could say which is meant.
    """
    registry = CdiRegistry()
    for folder in folders:
        seen: dict[str, str] = {}
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if path.suffix not in (".json", ".yaml", ".yml"):
                continue
            try:
                devices = parse(path.name, path.read_bytes()[:_FILE_BYTES_MAX])
            except (CdiError, OSError) as error:
                registry.problems.append(f"{path}: {error}")
                continue
            for device in devices:
                known = registry.devices.setdefault(device.kind, {})
                if (other := seen.get(device.qualified)) is not None:
                    registry.problems.append(
                        f"{device.qualified} is in both {other} and {path}: delete one of them"
                    )
                    known.pop(device.name, None)
                    continue
                seen[device.qualified] = str(path)
                known[device.name] = device
    return registry


def parse(name: str, data: bytes) -> list[CdiDevice]:
    """The GPUs of one file; none for devices of another class. Raises ``CdiError``."""
    try:
        document: Any = json.loads(data) if name.endswith(".json") else yaml.safe_load(data)
        found = msgspec.convert(document, _Specification, strict=False)
    except (ValueError, yaml.YAMLError, msgspec.ValidationError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise CdiError(f"it is not a CDI specification: {text}") from None
    if found.cdi_version.partition(".")[0] not in _MAJOR_VERSIONS:
        raise CdiError(f"its cdiVersion {found.cdi_version} is not one that this version knows")
    if found.kind.partition("/")[2] != CLASS:
        return []
    return [
        CdiDevice(found.kind, str(device.name), device.container_edits, found.container_edits)
        for device in found.devices
    ]


def _joined(first: list[Any], second: list[Any]) -> list[Any]:
    return [*first, *(item for item in second if item not in first)]
