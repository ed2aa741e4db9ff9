"""Time series of functions and servers: which there are, and their points. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from homeport.history.model import PERCENTILES, Range, Summary, checked, percentiles
from homeport.history.statistics import Containers
from homeport.history.usage import Used
from homeport.kernel.errors import InvalidError, UnimplementedError

RANGE_MAX_S: Final = 31 * 86400.0
POINTS_MAX: Final = 500
_POINTS: Final = 100
"""Points of a series where the client does not say how wide a bucket is, at most."""
_MINUTES: Final = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120, 180, 240, 480, 720, 1440)
BUCKETS_S: Final = tuple(60 * minutes for minutes in _MINUTES)
"""Widths of buckets, in seconds."""
CPU: Final = "cpu"
MEMORY: Final = "memory"
_UNMEASURED: Final = frozenset({"network", "gpu"})
"""Groups that the client names and that nobody here measures of functions."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known of a bucket."""

    ended: Summary
    containers: Containers
    used: Used


Value = Callable[[Seen], float | None]


@dataclass(frozen=True, slots=True)
class Series:
    """One series. Its name ends with how its values are made: ``_count``, ``_p90``."""

    name: str
    unit: str
    description: str
    value: Value


@dataclass(frozen=True, slots=True)
class Row:
    """Series that are shown as one: ``name`` has what they differ in between braces."""

    group: str
    name: str
    description: str
    series: Sequence[Series]


@dataclass(frozen=True, slots=True)
class Window:
    """Whole buckets, numbered from 1970 on."""

    first: int
    end: int
    bucket_s: int

    @property
    def span(self) -> Range:
        return Range(float(self.first * self.bucket_s), float(self.end * self.bucket_s))


def window(since: float, until: float, bucket_s: int | None) -> Window:
    """The buckets of a range: its bounds are rounded down. Raises ``InvalidError``."""
    span = checked(since, until, RANGE_MAX_S)
    if bucket_s is None:
        bucket_s = next(each for each in BUCKETS_S if span.seconds / each <= _POINTS)
    elif bucket_s not in BUCKETS_S:
        known = ", ".join(str(each) for each in BUCKETS_S)
        raise InvalidError(f"A bucket cannot be {bucket_s} s wide; there are {known}.")
    first, end = math.floor(since / bucket_s), math.floor(until / bucket_s)
    if end - first > POINTS_MAX:
        raise InvalidError(
            f"That are {end - first} points in each series, and {POINTS_MAX} are the most: use "
            "wider buckets or a shorter range."
        )
    return Window(first, end, bucket_s)


def chosen(groups: Iterable[str], *, is_server: bool) -> list[Row]:
    """The rows of these groups; of all without any.

    Raises ``InvalidError`` for an unknown group, ``UnimplementedError`` for one that is not measured.
    """
    rows = SERVER_ROWS if is_server else FUNCTION_ROWS
    wanted = set(groups)
    known = {row.group for row in rows}
    for group in sorted(wanted - known):
        names = ", ".join(sorted(known))
        if group in _UNMEASURED:
            raise UnimplementedError(
                f"Homeport does not measure the metrics group {group!r} yet; there are {names}."
            )
        raise InvalidError(f"There is no metrics group {group!r}; there are {names}.")
    return [row for row in rows if not wanted or row.group in wanted]


def points(
    series: Series,
    window: Window,
    ended: Mapping[int, Summary],
    containers: Mapping[int, Containers],
    used: Mapping[int, Used],
) -> list[tuple[float, float | None]]:
    """A series' values by the Unix time at which their bucket begins; ``None`` = nothing to tell."""
    nothing, nobody, idle = Summary(), Containers(), Used()
    return [
        (
            float(bucket * window.bucket_s),
            series.value(
                Seen(
                    ended.get(bucket, nothing),
                    containers.get(bucket, nobody),
                    used.get(bucket, idle),
                )
            ),
        )
        for bucket in range(window.first, window.end)
    ]


def _count(group: str, kinds: Mapping[str, tuple[str, Value]], unit: str, text: str) -> Row:
    """Numbers of ``unit`` of several kinds."""
    series = [
        Series(f"{kind}_{unit}_count", unit, f"{text}: {what}", value)
        for kind, (what, value) in kinds.items()
    ]
    return Row(group, f"{{{','.join(kinds)}}}_{unit}_count", text, series)


def _times(group: str, name: str, text: str, bins: Callable[[Summary], Mapping[int, int]]) -> Row:
    """The percentiles of a duration."""

    def at(percentile: float) -> Value:
        def value(seen: Seen) -> float | None:
            found = percentiles(bins(seen.ended), [percentile])
            return found[0] if found else None

        return value

    series = [
        Series(f"{name}_p{each:g}", "seconds", f"{text}: percentile {each:g}", at(each))
        for each in PERCENTILES
    ]
    suffixes = ",".join(f"p{each:g}" for each in PERCENTILES)
    return Row(group, f"{name}_{{{suffixes}}}", text, series)


def _amount(group: str, name: str, unit: str, text: str, mean: Value, most: Value) -> Row:
    """What containers used of something."""
    series = [
        Series(f"{name}_mean", unit, f"{text} that all containers used, on average", mean),
        Series(f"{name}_max", unit, f"{text}: the most that one container used", most),
    ]
    return Row(group, f"{name}_{{mean,max}}", f"{text} used by containers", series)


def _cores(seen: Seen) -> float:
    return seen.used.cores


def _cores_max(seen: Seen) -> float:
    return seen.used.cores_max


def _memory(seen: Seen) -> float:
    return seen.used.memory_gib


def _memory_max(seen: Seen) -> float:
    return seen.used.memory_gib_max


def _of_family(family: int) -> Value:
    return lambda seen: float(seen.ended.families().get(family, 0))


_CONTAINERS: Final = _count(
    "containers",
    {
        "present": ("there at any time of the bucket", lambda seen: float(seen.containers.total)),
        "started": ("came up", lambda seen: float(seen.containers.started)),
        "failed": ("ended with an error", lambda seen: float(seen.containers.failed)),
    },
    "containers",
    "Containers",
)
_USED: Final = [
    _amount(CPU, "cpu_cores", "cores", "Processors", _cores, _cores_max),
    _amount(MEMORY, "memory", "GiB", "Memory", _memory, _memory_max),
]
FUNCTION_ROWS: Final = [
    _count(
        "calls",
        {
            "successful": ("ended well", lambda seen: float(seen.ended.succeeded)),
            "failed": ("raised, or were cancelled", lambda seen: float(seen.ended.failed)),
            "timed_out": ("ran for too long", lambda seen: float(seen.ended.timed_out)),
        },
        "calls",
        "Inputs that ended",
    ),
    _times("calls", "execution_time", "From the start of an input", lambda each: each.execution),
    _times("calls", "latency", "From the arrival of an input", lambda each: each.latency),
    _CONTAINERS,
    *_USED,
]
SERVER_ROWS: Final = [
    _count(
        "requests",
        {
            f"{family // 100}xx" if family else "unanswered": (
                f"status {family} to {family + 99}" if family else "no answer",
                _of_family(family),
            )
            for family in (100, 200, 300, 400, 500, 0)
        },
        "requests",
        "Requests",
    ),
    _times("requests", "latency", "From the arrival of a request", lambda each: each.latency),
    _CONTAINERS,
    *_USED,
]
