"""The node's settings about GPUs, read."""

from __future__ import annotations

from pathlib import Path

from homeport.node.gpus.inventory import GpuOptions
from homeport.settings import Settings


def gpu_options(settings: Settings) -> GpuOptions:
    """The settings ``gpu_cdi_folders`` and ``gpu_types``."""
    folders = [part.strip() for part in settings.gpu_cdi_folders.split(",")]
    return GpuOptions([Path(folder) for folder in folders if folder], settings.gpu_types)
