"""How many containers a function should have. State in, plan out: no I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from homeport.functions.model import SCALEDOWN_WINDOW_DEFAULT_S, Autoscaler

START_COST_S = 0.5
"""What a cold container costs before its first input; work that the present containers finish
sooner than that is left to them, unless they finish nothing at all for that long: what they run may
be waiting for what waits for them."""
BURST_CONTAINERS = 4
"""Containers started at once for a function of which nothing is known yet; each one that then
turns out busy allows one more (so a long queue of slow inputs doubles its containers)."""


@dataclass(frozen=True, slots=True)
class IdleTask:
    """A container without inputs, since ``idle_since`` (monotonic seconds)."""

    task_id: str
    idle_since: float


@dataclass(frozen=True, slots=True)
class PoolView:
    """What the plan is made from. Times are monotonic seconds."""

    now: float
    waiting: int
    running: int
    """Inputs in ready containers that are not stalled."""
    ready: int
    """Containers that take inputs, busy or not."""
    stalled: int
    """Those of them that take no further input for now, whatever room they should have."""
    starting: int
    idle: Iterable[IdleTask]
    """The longest idle first."""
    slots: int
    """Inputs one container takes at once."""
    target_slots: int
    """Inputs one container is meant to take at once (at most ``slots``)."""
    settings: Autoscaler
    input_s: float | None
    """Typical duration of an input, if any has finished."""
    progress_at: float
    """When an input last finished, or the first of those waiting came."""
    single_use: bool
    is_live: bool
    """Whether the app may start containers."""
    keep_min: bool
    """Whether ``min_containers`` is in force (the app is published)."""
    outdated: int = 0
    """Containers of an earlier version that still serve: what they run counts as ``running``, they
    themselves neither as ``ready`` nor ``starting``, and those without inputs as ``idle``."""
    can_start: bool = True
    """Whether the last start went well: else nothing is replaced for the sake of it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Start that many, stop these; look again at ``check_at`` if nothing happened before."""

    start: int = 0
    stop: tuple[str, ...] = ()
    retire: int = 0
    """Outdated containers that are not needed any more."""
    check_at: float | None = None


def plan(view: PoolView) -> Plan:
    """The next step towards the wanted number of containers."""
    if not view.is_live:
        return Plan()
    live = view.ready + view.starting
    wanted = _wanted(view)
    if view.outdated:
        return _roll(view, wanted)
    if wanted > live:
        return _scale_up(view, wanted - live)
    return _scale_down(view, wanted)


def _roll(view: PoolView, wanted: int) -> Plan:
    """Put containers of the present version in the place of outdated ones.

    Each that is ready lets one go that is wanted; those that nobody wants go with the first. With a
    maximum, one goes first, so that there is never one too many.
    """
    if view.can_start:
        wanted = max(wanted, 1)
    live = view.ready + view.starting
    retire = max(0, view.outdated - max(0, wanted - view.ready)) if view.ready else 0
    room = wanted
    if view.settings.max_containers:
        room = view.settings.max_containers - view.outdated + retire
        if wanted > live and room <= live and not retire:
            retire = 1
    missing = min(wanted, room) - live
    if missing > 0 and not view.waiting:  # the old ones serve: there is no hurry
        missing = max(0, min(missing, max(BURST_CONTAINERS, view.ready) - view.starting))
        step = Plan(start=missing)
    else:
        step = _scale_up(view, missing) if missing > 0 else _scale_down(view, wanted)
    return replace(step, retire=retire)


def _wanted(view: PoolView) -> int:
    settings = view.settings
    demand = view.waiting + view.running
    wanted = view.stalled + math.ceil(demand / max(1, view.target_slots))
    if wanted and settings.buffer_containers:
        wanted += settings.buffer_containers
    if view.keep_min:
        wanted = max(wanted, settings.min_containers or 0)
    if settings.max_containers:
        wanted = min(wanted, settings.max_containers)
    return wanted


def _scale_up(view: PoolView, missing: int) -> Plan:
    """At most a burst for the unknown, and none for work that is done before they are up."""
    floor = 0
    if view.keep_min:
        floor = (view.settings.min_containers or 0) - view.ready - view.starting
        floor = max(0, min(floor, missing))  # a maximum below the minimum wins
    if not view.waiting:
        # Only a buffer or a minimum is wanting.
        return Plan(start=max(floor, missing))
    if view.single_use:
        return Plan(start=missing)
    available = view.ready - view.stalled
    patient_until = view.progress_at + START_COST_S
    if available and view.input_s is not None and view.now < patient_until:
        drain_s = view.waiting * view.input_s / (available * view.slots)
        if drain_s < START_COST_S:
            return Plan(start=floor, check_at=patient_until)
    burst = max(BURST_CONTAINERS, view.ready) - view.starting
    return Plan(start=max(floor, min(missing, burst)))


def _scale_down(view: PoolView, wanted: int) -> Plan:
    """Idle containers beyond the wanted number end when their window has passed."""
    if view.waiting:
        return Plan()
    window_s = view.settings.scaledown_window_s or SCALEDOWN_WINDOW_DEFAULT_S
    keep = (view.settings.min_containers or 0) if view.keep_min else 0
    if (view.running or view.stalled) and view.settings.buffer_containers:
        keep = max(keep, wanted)
    surplus = view.ready + view.starting + view.outdated - max(keep, 0)
    stop: list[str] = []
    check_at: float | None = None
    for task in view.idle:
        if len(stop) >= surplus:
            break
        expires = task.idle_since + window_s
        if expires <= view.now:
            stop.append(task.task_id)
        else:
            check_at = expires
            break
    return Plan(stop=tuple(stop), check_at=check_at)
