"""CPU, memory and GPU amounts and their arithmetic."""

from __future__ import annotations

import msgspec


class Resources(msgspec.Struct, frozen=True, array_like=True):
    """An amount of a node: ``milli_cpu`` thousandths of a core, ``memory_mb`` MiB, whole GPUs."""

    milli_cpu: int = 0
    memory_mb: int = 0
    gpus: int = 0

    def fits_in(self, other: Resources) -> bool:
        """Whether this amount can be taken from ``other``."""
        return (
            self.milli_cpu <= other.milli_cpu
            and self.memory_mb <= other.memory_mb
            and self.gpus <= other.gpus
        )

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.milli_cpu + other.milli_cpu,
            self.memory_mb + other.memory_mb,
            self.gpus + other.gpus,
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            self.milli_cpu - other.milli_cpu,
            self.memory_mb - other.memory_mb,
            self.gpus - other.gpus,
        )


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """What a container may use. ``0`` means: no limit of that kind.

    ``milli_cpu`` is the guaranteed share (weight), ``milli_cpu_max`` the hard ceiling,
    ``memory_mb`` the hard memory limit in MiB (the kernel kills beyond it), ``pids`` the number
    of processes and threads.
    """

    milli_cpu: int = 0
    milli_cpu_max: int = 0
    memory_mb: int = 0
    pids: int = 0
