"""What a sandbox used of a node, computed from samples. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from homeport.link.messages import UsageSample
from homeport.sandboxes.model import SandboxRecord

GIB: Final = 1024**3


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used between two moments (Unix seconds).

    ``cores`` and ``memory_gib`` are what was measured at each sample; ``core_s`` and
    ``memory_gib_s`` what was used of them over time. The ``asked_…`` ones count what was asked for
    where that is more.
    """

    since: float
    until: float
    ran_s: float
    cores: list[float]
    memory_gib: list[float]
    core_s: float
    memory_gib_s: float
    asked_core_s: float
    asked_memory_gib_s: float


def usage_between(
    record: SandboxRecord, samples: Sequence[UsageSample], since: float, until: float
) -> Usage:
    """From ``samples`` (oldest first); a stretch between two counts where it is in the range."""
    began = record.started_at or until
    ended = record.finished_at or until
    asked_cores = record.spec.milli_cpu / 1000
    asked_gib = record.spec.memory_mb / 1024
    cores: list[float] = []
    memory: list[float] = []
    core_s = memory_gib_s = asked_core_s = asked_gib_s = 0.0
    for before, after in itertools.pairwise(samples):
        overlap = min(after.time, until) - max(before.time, since)
        if overlap <= 0:
            continue
        rate = max(0.0, after.cpu_s - before.cpu_s) / (after.time - before.time)
        gib = before.memory_bytes / GIB
        cores.append(rate)
        memory.append(gib)
        core_s += rate * overlap
        memory_gib_s += gib * overlap
        asked_core_s += max(rate, asked_cores) * overlap
        asked_gib_s += max(gib, asked_gib) * overlap
    return Usage(
        since=since,
        until=until,
        ran_s=max(0.0, min(ended, until) - max(began, since)),
        cores=sorted(cores),
        memory_gib=sorted(memory),
        core_s=core_s,
        memory_gib_s=memory_gib_s,
        asked_core_s=asked_core_s,
        asked_memory_gib_s=asked_gib_s,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of the ``ordered`` ones do not exceed; of one at least."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
