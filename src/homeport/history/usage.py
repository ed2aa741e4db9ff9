"""What the containers of a function used of processors and memory, by buckets of time. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from homeport.link.messages import UsageSample

_GIB: Final = 1024**3


@dataclass(slots=True)
class Used:
    """What was used in a bucket by all containers together, and the most that one of them did."""

    seconds: float = 0.0
    """As long as the bucket is, or has been by now."""
    core_s: float = 0.0
    memory_gib_s: float = 0.0
    cores_max: float = 0.0
    memory_gib_max: float = 0.0

    @property
    def cores(self) -> float:
        """On average."""
        return self.core_s / self.seconds if self.seconds else 0.0

    @property
    def memory_gib(self) -> float:
        """On average."""
        return self.memory_gib_s / self.seconds if self.seconds else 0.0


def used_by_bucket(
    containers: Iterable[Sequence[UsageSample]], first: int, end: int, bucket_s: int, now: float
) -> dict[int, Used]:
    """By number of bucket, those in which a container was measured.

    ``containers`` are the samples of each, oldest first; between two samples use is even.
    """
    found: dict[int, Used] = {}
    for samples in containers:
        for before, after in itertools.pairwise(samples):
            if after.time <= before.time:
                continue
            cores = max(0.0, after.cpu_s - before.cpu_s) / (after.time - before.time)
            memory_gib = max(before.memory_bytes, after.memory_bytes) / _GIB
            last = math.ceil(after.time / bucket_s)
            for bucket in range(max(first, int(before.time // bucket_s)), min(end, last)):
                began = bucket * bucket_s
                overlap = min(after.time, began + bucket_s) - max(before.time, began)
                used = found.setdefault(bucket, Used(min(bucket_s, max(1.0, now - began))))
                used.core_s += cores * overlap
                used.memory_gib_s += memory_gib * overlap
                used.cores_max = max(used.cores_max, cores)
                used.memory_gib_max = max(used.memory_gib_max, memory_gib)
    return found
