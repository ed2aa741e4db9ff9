"""Ended inputs and requests, packed; what can be told of many without unpacking them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from homeport.kernel.errors import InvalidError
from homeport.link.messages import STATUS_IDLE_TIMEOUT, STATUS_SUCCESS, STATUS_TIMEOUT

RANGE_MAX_S: Final = 7 * 86400.0
"""The longest range of statistics (RPCs ``*GetTimeRangeStats``)."""
KEPT_S: Final = 31 * 86400.0
"""How long an ended input is remembered."""
KEPT_MAX: Final = 5_000_000
"""Ended inputs and requests that are remembered, some 60 bytes each; the oldest go first."""
BUCKETS_MAX: Final = 20_000
"""In one count."""
FETCH_MAX: Final = 20_000
"""Entries in one answer."""
NAME_MAX: Final = 200
"""Characters of a route that are kept."""
PERCENTILES: Final = (50.0, 90.0, 99.0)
_GROWTH: Final = math.log(1.02)
"""Between neighbouring bins of a histogram: a percentile is off by 1 % at most."""
_SHORTEST_S: Final = 1e-6


class Entry(NamedTuple):
    """One ended input of a function, or one request of a server. Times are Unix seconds."""

    call_id: str
    """Empty for a request."""
    idx: int
    enqueued_at: float
    started_at: float
    """0 if no container began it."""
    finished_at: float
    task_id: str
    status: int
    """Of an input a ``STATUS_*``; of a request the HTTP status, 0 if there was no answer."""
    name: str
    """The method of a class; the route of a request; or empty."""


class Summary(msgspec.Struct, array_like=True):
    """What is told of many entries: how they ended, and histograms of how long they took."""

    statuses: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    execution: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    """From their start to their end."""
    latency: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    """From their arrival to their end."""

    def add(self, entry: Entry) -> None:
        """One entry more."""
        _, _, enqueued, started, finished, _, status, _ = entry
        self.statuses[status] = self.statuses.get(status, 0) + 1
        place = bin_of(finished - enqueued)
        self.latency[place] = self.latency.get(place, 0) + 1
        if started:
            place = bin_of(finished - started)
            self.execution[place] = self.execution.get(place, 0) + 1

    def merge(self, other: Summary) -> None:
        """All that ``other`` is about, too."""
        for mine, theirs in (
            (self.statuses, other.statuses),
            (self.execution, other.execution),
            (self.latency, other.latency),
        ):
            for key, count in theirs.items():
                mine[key] = mine.get(key, 0) + count

    @property
    def total(self) -> int:
        return sum(self.statuses.values())

    @property
    def succeeded(self) -> int:
        """Inputs that ended well."""
        return self.statuses.get(STATUS_SUCCESS, 0)

    @property
    def timed_out(self) -> int:
        """Inputs that ran, or idled, for too long."""
        return self.statuses.get(STATUS_TIMEOUT, 0) + self.statuses.get(STATUS_IDLE_TIMEOUT, 0)

    @property
    def failed(self) -> int:
        """Inputs that ended otherwise; cancelled ones are among them."""
        return self.total - self.succeeded - self.timed_out

    def families(self) -> dict[int, int]:
        """Requests by the hundreds of their status (200, 400 …; 0 without an answer)."""
        found: dict[int, int] = {}
        for status, count in sorted(self.statuses.items()):
            family = status // 100 * 100
            found[family] = found.get(family, 0) + count
        return found

    @property
    def answered_well(self) -> int:
        """Requests with a status below 400."""
        return sum(count for status, count in self.statuses.items() if 100 <= status < 400)


def bin_of(seconds: float) -> int:
    """The histogram's bin for a duration."""
    if seconds < _SHORTEST_S:
        seconds = _SHORTEST_S
    return math.ceil(math.log(seconds) / _GROWTH)


def value_of(place: int) -> float:
    """The duration in the middle of a bin, in seconds."""
    return math.exp((place - 0.5) * _GROWTH)


def histogram(durations: Iterable[float]) -> dict[int, int]:
    """Durations (seconds) by bin."""
    found: dict[int, int] = {}
    for seconds in durations:
        place = bin_of(seconds)
        found[place] = found.get(place, 0) + 1
    return found


def percentiles(bins: Mapping[int, int], wanted: Sequence[float] = PERCENTILES) -> list[float]:
    """The durations at these percentiles; empty without any."""
    total = sum(bins.values())
    if not total:
        return []
    found: list[float] = []
    seen = 0
    places = iter(sorted(bins))
    place = next(places)
    for percentile in sorted(wanted):
        rank = max(1, math.ceil(percentile / 100 * total))
        while seen + bins[place] < rank:
            seen += bins[place]
            place = next(places)
        found.append(value_of(place))
    return found


# ── packing ─────────────────────────────────────────────────────────────────────────────────

_Row = tuple[int, int, float, float, float, int, int, int]


class _Packed(msgspec.Struct, array_like=True):
    words: list[str]
    rows: list[_Row]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Packed)
_summaries: Final = msgspec.msgpack.Decoder(Summary)


class Pack:
    """Entries as they are stored: each id and name once."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._words: list[str] = []
        self._rows: list[_Row] = []
        self.summary = Summary()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, entry: Entry) -> None:
        """One entry more."""
        call_id, idx, enqueued, started, finished, task_id, status, name = entry
        place = self._place
        words = place(call_id), place(task_id), place(name)
        self._rows.append((words[0], idx, enqueued, started, finished, words[1], status, words[2]))
        self.summary.add(entry)

    def _place(self, word: str) -> int:
        place = self._places.get(word)
        if place is None:
            place = self._places[word] = len(self._words)
            self._words.append(word)
        return place

    def encode(self) -> bytes:
        """As ``unpack`` takes it."""
        return _encoder.encode(_Packed(self._words, self._rows))

    def encode_summary(self) -> bytes:
        """As ``summary_of`` takes it."""
        return _encoder.encode(self.summary)


def summary_of(data: bytes) -> Summary:
    """A summary as it was stored."""
    return _summaries.decode(data)


def unpack(data: bytes) -> list[Entry]:
    """The entries of a pack."""
    packed = _decoder.decode(data)
    words = packed.words
    return [
        Entry(words[call], idx, enqueued, started, finished, words[task], status, words[name])
        for call, idx, enqueued, started, finished, task, status, name in packed.rows
    ]


# ── ranges ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Range:
    """``since`` ≤ time < ``until``, Unix seconds."""

    since: float
    until: float

    def __contains__(self, time: float) -> bool:
        return self.since <= time < self.until

    @property
    def seconds(self) -> float:
        return self.until - self.since


def checked(since: float, until: float, at_most_s: float = math.inf) -> Range:
    """That range. Raises ``InvalidError`` if it is none, or too long."""
    if since >= until:
        raise InvalidError("The start of the time range must be before its end.")
    if until - since > at_most_s:
        raise InvalidError(
            f"The time range is longer than {at_most_s / 86400:g} days: ask for a shorter one."
        )
    return Range(since, until)


def buckets(span: Range, bucket_s: int) -> tuple[int, int]:
    """First and past-the-last number of the buckets that cover ``span``.

    Bucket ``n`` begins ``n * bucket_s`` seconds after 1970. Raises ``InvalidError``.
    """
    if bucket_s < 1:
        raise InvalidError("bucket_secs must be 1 or more.")
    first, end = math.floor(span.since / bucket_s), math.ceil(span.until / bucket_s)
    if end - first > BUCKETS_MAX:
        raise InvalidError(
            f"The time range has {end - first} buckets of {bucket_s} s; at most {BUCKETS_MAX} are "
            "counted at once: use wider ones or a shorter range."
        )
    return first, end


def limited(number: int, what: str) -> int:
    """How many entries to give. Raises ``InvalidError`` naming ``what`` it is."""
    if not 1 <= number <= FETCH_MAX:
        raise InvalidError(f"{what} must be between 1 and {FETCH_MAX}, not {number}.")
    return number
