"""When schedules are due: time zones, summer time, calendars, clocks that are set."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.kernel.errors import InvalidError
from homeport.schedules.model import Cron, Entry, Period, Schedule

BERLIN = "Europe/Berlin"


def at(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def moments(schedule: Schedule, after: str, count: int, anchor: str = "") -> list[str]:
    found: list[str] = []
    time = at(after)
    for _ in range(count):
        time = schedule.first_after(time, at(anchor or after))
        found.append(datetime.fromtimestamp(time, UTC).strftime("%m-%d %H:%M:%S"))
    return [text.removesuffix(":00") for text in found]


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        (Cron("*/15 * * * *"), "2026-03-01T00:00", ["03-01 00:15", "03-01 00:30"]),
        (Cron("5 4 * * MON-FRI"), "2026-02-27T12:00", ["03-02 04:05", "03-03 04:05"]),
        (Cron("0 6 * * *", "America/New_York"), "2026-01-01T00:00", ["01-01 11:00"]),
        (Cron("@daily"), "2026-01-31T12:00", ["02-01 00:00"]),
        # The hour from 02:00 to 03:00 is left out: the run is made when it would have ended …
        (Cron("30 2 * * *", BERLIN), "2026-03-28T12:00", ["03-29 01:00", "03-30 00:30"]),
        # … and what runs by the hour has nothing to catch up with.
        (Cron("30 * * * *", BERLIN), "2026-03-29T00:00", ["03-29 00:30", "03-29 01:30"]),
        # The hour is there twice: the run is made once …
        (Cron("30 2 * * *", BERLIN), "2026-10-24T12:00", ["10-25 00:30", "10-26 01:30"]),
        # … and what runs by the hour in each of them.
        (Cron("30 * * * *", BERLIN), "2026-10-25T00:00", ["10-25 00:30", "10-25 01:30"]),
    ],
)
def test_cron(cron: Cron, after: str, expected: list[str]) -> None:
    assert moments(cron, after, len(expected)) == expected


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        (Period(hours=4), ["01-31 04:00", "01-31 08:00"]),
        (Period(days=1), ["02-01 00:00", "02-02 00:00"]),
        (Period(months=1), ["02-28 00:00", "03-31 00:00", "04-30 00:00"]),
        (Period(years=1, days=1), ["02-01 00:00", "02-02 00:00"]),
        (Period(seconds=90), ["01-31 00:01:30", "01-31 00:03"]),
    ],
)
def test_period(period: Period, expected: list[str]) -> None:
    assert moments(period, "2026-01-31T00:00", len(expected), "2026-01-31T00:00") == expected


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Cron("61 * * * *"), "minute"),
        (Cron("* * *"), "3 fields"),
        (Cron("* * * * * *"), "6 fields"),
        (Cron(""), "0 fields"),
        (Cron("every day"), "2 fields"),
        (Cron("0 0 31 2 *"), "day-of-month"),
        (Cron("0 0 * * *", "Middle/Earth"), "time zone 'middle/earth'"),
        (Cron("0 0 * * *", "../../etc/passwd"), "not known"),
        (Period(), "shorter than 1 s"),
        (Period(seconds=0.2), "shorter than 1 s"),
        (Period(days=-1), "negative"),
        (Period(seconds=float("nan")), "not a number"),
        (Period(years=2_000_000_000), "thousand years"),
    ],
)
def test_refused(schedule: Schedule, words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        schedule.check()
    assert words in caught.value.message.lower()


def test_accepted() -> None:
    for schedule in (Cron("0 0 29 2 *"), Cron("0 9 * * 1#1"), Period(seconds=1), Period(years=900)):
        schedule.check()


TIMES = st.floats(1.6e9, 1.9e9)
CRONS = st.builds(
    Cron,
    st.sampled_from(["30 2 * * *", "*/7 * * * *", "0 */3 * * *", "15 1-3 * * 0", "0 0 1 * *"]),
    st.sampled_from(["", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
)
PERIODS = st.builds(
    Period,
    months=st.integers(0, 3),
    days=st.integers(0, 40),
    hours=st.integers(0, 50),
    seconds=st.floats(1, 1e5),
)


@given(schedule=CRONS | PERIODS, anchor=TIMES, gap=st.floats(0, 1e7))
def test_moments_have_one_order(schedule: Schedule, anchor: float, gap: float) -> None:
    """What comes first after a moment is also what is last until it has come."""
    time = anchor + gap
    first = schedule.first_after(time, anchor)
    assert first > time
    assert schedule.last_until(first, anchor) == first
    assert schedule.last_until(time, anchor) <= time
    assert schedule.first_after(schedule.last_until(first, anchor), anchor) > first


def entry(schedule: Schedule, now: str) -> Entry:
    return Entry.begin("fu-1", "ap-1", schedule, at(now))


def test_nothing_is_due_before_its_time() -> None:
    assert entry(Cron("0 * * * *"), "2026-01-01T00:10").due(at("2026-01-01T00:59:59")) is None


def test_due() -> None:
    due = entry(Cron("0 * * * *"), "2026-01-01T00:10").due(at("2026-01-01T01:00"))
    assert due is not None
    assert not due.has_missed
    assert (due.at, due.after.last_at) == (at("2026-01-01T01:00"),) * 2
    assert due.after.next_at == at("2026-01-01T02:00")


@pytest.mark.parametrize("schedule", [Cron("0 * * * *"), Period(hours=1)])
def test_of_missed_runs_the_latest_is_made(schedule: Schedule) -> None:
    due = entry(schedule, "2026-01-01T00:00").due(at("2026-01-03T05:30"))
    assert due is not None
    assert due.has_missed
    assert due.at == at("2026-01-03T05:00")
    assert due.after.next_at == at("2026-01-03T06:00")


def test_clock_set_back_a_little_repeats_nothing() -> None:
    due = entry(Cron("0 * * * *"), "2026-01-01T00:00").due(at("2026-01-01T05:00"))
    assert due is not None
    assert due.after.adjusted(at("2026-01-01T03:10")).next_at == at("2026-01-01T06:00")


def test_clock_that_was_far_ahead_is_not_believed() -> None:
    ahead = entry(Cron("0 * * * *"), "2031-01-01T00:00").due(at("2031-01-01T05:00"))
    assert ahead is not None
    assert ahead.after.adjusted(at("2026-01-01T03:10")).next_at == at("2026-01-01T04:00")


def test_adjusting_loses_nothing_that_is_due() -> None:
    waiting = entry(Cron("0 * * * *"), "2026-01-01T00:10")
    assert waiting.adjusted(at("2026-01-01T07:00")) == waiting


def test_kinds_are_told_apart_when_stored() -> None:
    for schedule in (Cron("0 * * * *", BERLIN), Period(days=1)):
        stored = msgspec.msgpack.encode(schedule)
        assert msgspec.msgpack.decode(stored, type=Cron | Period) == schedule
