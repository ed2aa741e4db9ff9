"""Whose containers make way when the machine is full. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from homeport.kernel.resources import Resources


def share(used: Resources, capacity: Resources) -> float:
    """The part that ``used`` is of what there is, of the resource it has most of."""
    parts = (
        (used.milli_cpu, capacity.milli_cpu),
        (used.memory_mb, capacity.memory_mb),
        (used.gpus, capacity.gpus),
    )
    return (
        max(amount / whole for amount, whole in parts if whole) if any(w for _, w in parts) else 0
    )


def richest(
    used: Mapping[str, Resources], starved: str, demand: Resources, capacity: Resources
) -> list[str]:
    """Apps that should give way to a container of app ``starved``, the one with most first.

    Only those that would still have no less than it: otherwise two apps would take from each other
    for ever.
    """
    wanted = share(used.get(starved, Resources()) + demand, capacity)
    shares = {app_id: share(amount, capacity) for app_id, amount in used.items()}
    step = share(demand, capacity)
    candidates = [app_id for app_id in shares if app_id != starved]
    candidates.sort(key=lambda app_id: -shares[app_id])
    return [app_id for app_id in candidates if shares[app_id] - step >= wanted - 1e-9]
