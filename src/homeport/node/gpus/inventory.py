"""The GPUs of this machine that containers can be given, and why others cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from homeport.kernel.gpus import Gpu
from homeport.node.gpus import models
from homeport.node.gpus.cdi import CdiDevice, CdiRegistry, read_folders
from homeport.node.gpus.nvml import NvmlDevice, NvmlMissingError, read_devices

NVIDIA: Final = "nvidia.com/gpu"
_WHOLE: Final = "all"
"""The device name that stands for all devices of a file."""
_NVIDIA_PCI: Final = "0x10de"
_DISPLAY_PCI: Final = "0x03"
PCI_FOLDER: Final = Path("/sys/bus/pci/devices")
GENERATE: Final = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
SET_UP: Final = f"install NVIDIA's nvidia-container-toolkit and run: {GENERATE}"


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """Where to look (``folders``: no GPU is offered without any), and what types to go by."""

    folders: Sequence[Path] = ()
    types: Mapping[str, str] = field(default_factory=dict[str, str])


NO_GPUS: Final = GpuOptions()


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a GPU is not offered, and what to do about it."""

    found: str
    fix: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """``gpus`` with the device of each by uuid, and what is in the way of others."""

    gpus: tuple[Gpu, ...] = ()
    devices: Mapping[str, CdiDevice] = field(default_factory=dict[str, CdiDevice])
    problems: tuple[Problem, ...] = ()


def discover(options: GpuOptions, pci: Path = PCI_FOLDER) -> Inventory:
    """Look at the machine. Blocks, for seconds if the driver slept."""
    if not options.folders:
        return Inventory()
    registry = read_folders(options.folders)
    driver: list[NvmlDevice] | str
    try:
        driver = read_devices()
    except NvmlMissingError as error:
        driver = str(error)
    return combine(driver, registry, options, nvidia_cards(pci))


def combine(
    driver: Sequence[NvmlDevice] | str, registry: CdiRegistry, options: GpuOptions, cards: int
) -> Inventory:
    """What the driver, or why it is silent, and the specifications make together. Pure.

    ``cards`` are NVIDIA's on the bus, with or without a driver.
    """
    gpus: list[Gpu] = []
    devices: dict[str, CdiDevice] = {}
    folders = ", ".join(map(str, options.folders))
    problems = [Problem(text, "mend the file or make it anew") for text in registry.problems]
    if isinstance(driver, str):
        if cards:
            problems.append(
                Problem(
                    f"{cards} of NVIDIA, and its driver does not answer ({driver})",
                    "install NVIDIA's driver for this kernel, and see that nvidia-smi works",
                )
            )
    else:
        for each in driver:
            device = registry.find(NVIDIA, each.uuid, str(each.index), f"gpu{each.index}")
            if each.is_split:
                fix = f"switch MIG off: nvidia-smi -i {each.index} -mig 0"
                problems.append(Problem(f"{each.name} is split by MIG", fix))
            elif device is None:
                found = f"{each.name} ({each.uuid}) has no CDI specification in {folders}"
                problems.append(Problem(found, SET_UP))
            else:
                gpus.append(
                    Gpu(
                        uuid=each.uuid,
                        type=models.override(options.types, each.uuid, str(each.index), each.name)
                        or models.type_of(each.name, each.memory_mb),
                        name=each.name,
                        memory_mb=each.memory_mb,
                        index=each.index,
                    )
                )
                devices[each.uuid] = device
    for device in _without_driver(registry, skip_nvidia=not isinstance(driver, str)):
        named = models.override(options.types, device.qualified, device.name)
        maker = device.vendor.partition(".")[0].upper()
        gpus.append(Gpu(device.qualified, named or maker, device.qualified, 0, len(gpus)))
        devices[device.qualified] = device
        if not named:
            problems.append(
                Problem(
                    f"the type of {device.qualified} is not known",
                    f'name it in the setting gpu_types: "{device.name}" = "H100"',
                )
            )
    return Inventory(tuple(gpus), devices, tuple(problems))


def _without_driver(registry: CdiRegistry, *, skip_nvidia: bool) -> list[CdiDevice]:
    """The devices that only a specification tells of; one for all the names that it has."""
    found: list[CdiDevice] = []
    for kind, known in sorted(registry.devices.items()):
        if kind == NVIDIA and skip_nvidia:
            continue
        seen: set[frozenset[str]] = set()
        for name, device in sorted(known.items()):
            if name != _WHOLE and device.nodes and device.nodes not in seen:
                seen.add(device.nodes)
                found.append(device)
    return found


def nvidia_cards(pci: Path = PCI_FOLDER) -> int:
    """How many display adapters of NVIDIA are on the bus."""
    count = 0
    for folder in pci.glob("*"):
        try:
            vendor = (folder / "vendor").read_text().strip()
            kind = (folder / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == _NVIDIA_PCI and kind.startswith(_DISPLAY_PCI)
    return count
