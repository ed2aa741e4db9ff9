"""What NVIDIA's driver says of its GPUs, by the library that comes with it (NVML)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class NvmlMissingError(Exception):
    """There is no driver, or it does not answer; the message says what it said."""


@dataclass(frozen=True, slots=True)
class NvmlDevice:
    """One GPU as the driver counts it."""

    index: int
    uuid: str
    name: str
    memory_mb: int
    is_split: bool = False
    """It is divided into parts (MIG): they have no place here."""


def read_devices() -> list[NvmlDevice]:
    """All GPUs of the driver. Blocks, for seconds if the driver slept. Raises ``NvmlMissingError``."""
    api: Any = importlib.import_module("pynvml")
    try:
        api.nvmlInit()
    except api.NVMLError as error:
        raise NvmlMissingError(str(error)) from None
    try:
        found: list[NvmlDevice] = []
        for index in range(api.nvmlDeviceGetCount()):
            try:
                found.append(_device(api, index))
            except api.NVMLError as error:
                log.warning("a GPU does not answer", index=index, error=str(error))
        return found
    except api.NVMLError as error:
        raise NvmlMissingError(str(error)) from None
    finally:
        api.nvmlShutdown()


def _device(api: Any, index: int) -> NvmlDevice:
    handle = api.nvmlDeviceGetHandleByIndex(index)
    try:
        is_split = api.nvmlDeviceGetMigMode(handle)[0] == api.NVML_DEVICE_MIG_ENABLE
    except api.NVMLError:  # most models cannot be split
        is_split = False
    return NvmlDevice(
        index=index,
        uuid=_text(api.nvmlDeviceGetUUID(handle)),
        name=_text(api.nvmlDeviceGetName(handle)),
        memory_mb=int(api.nvmlDeviceGetMemoryInfo(handle).total) // (1024 * 1024),
        is_split=is_split,
    )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
