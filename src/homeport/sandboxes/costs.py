"""What sandboxes cost, by the prices of the installation, and by groups of tags. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from homeport.kernel.errors import InvalidError
from homeport.sandboxes.model import SandboxRecord
from homeport.sandboxes.usage import Usage

HOUR_S: Final = 3600
RANGE_MAX_S: Final = 7 * 24 * HOUR_S
GROUPS_MAX: Final = 10_000
CPU, MEMORY = "CPU", "Memory"


@dataclass(frozen=True, slots=True)
class Prices:
    """Per hour, in the currency of the installation's owner; GPUs by their type."""

    core: float = 0.0
    gib: float = 0.0
    gpus: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def are_set(self) -> bool:
        return bool(self.core or self.gib or self.gpus)


Costs = dict[str, Decimal]
"""By resource: ``CPU``, ``Memory``, types of GPUs."""


@dataclass(frozen=True, slots=True)
class Group:
    """Sandboxes with the same ``tags`` (``None``: they have no such tag), and what they cost."""

    tags: dict[str, str | None]
    costs: Costs


def costs_of(record: SandboxRecord, usage: Usage, prices: Prices) -> Costs:
    """What was asked for counts, or what was used where that is more."""
    costs = {
        CPU: _cost(usage.asked_core_s, prices.core),
        MEMORY: _cost(usage.asked_memory_gib_s, prices.gib),
    }
    spec = record.spec
    if spec.gpu_type and spec.gpu_count:
        gpu_s = usage.ran_s * spec.gpu_count
        costs[spec.gpu_type] = _cost(gpu_s, prices.gpus.get(spec.gpu_type, 0.0))
    return costs


def groups_of(found: Iterable[tuple[SandboxRecord, Costs]], names: Sequence[str]) -> list[Group]:
    """One a combination of the values of the tags ``names``, in the order of these.

    Raises ``InvalidError`` for more than ``GROUPS_MAX``.
    """
    totals: dict[tuple[str | None, ...], Costs] = {}
    for record, costs in found:
        key = tuple(record.tags.get(name) for name in names)
        total = totals.setdefault(key, defaultdict(Decimal))
        if len(totals) > GROUPS_MAX:
            raise InvalidError(f"more than {GROUPS_MAX:,} groups: group by fewer tags")
        for resource, cost in costs.items():
            total[resource] += cost
    ordered = sorted(totals, key=lambda key: [(value is not None, value or "") for value in key])
    return [Group(dict(zip(names, key, strict=True)), dict(totals[key])) for key in ordered]


def check_range(since: float, until: float, now: float) -> float:
    """The end of the range, Unix seconds; ``until`` 0 = ``now``. Raises ``InvalidError``."""
    for name, moment in (("since", since), ("until", until)):
        if moment % HOUR_S:
            raise InvalidError(f"`{name}` must be on a full hour (UTC)")
    until = until or now
    if since >= until:
        raise InvalidError("`since` must be before `until`")
    if until - since > RANGE_MAX_S:
        raise InvalidError("the time range must not be longer than 7 days")
    return until


def _cost(seconds: float, price: float) -> Decimal:
    """To a ten-thousandth of the smallest coin: sums of many small ones stay right."""
    return Decimal(f"{seconds / HOUR_S * price:.6f}")
