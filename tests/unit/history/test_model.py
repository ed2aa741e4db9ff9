"""Packs, histograms and ranges."""

from __future__ import annotations

import random

import pytest

from homeport.history.model import (
    BUCKETS_MAX,
    FETCH_MAX,
    Entry,
    Pack,
    Range,
    Summary,
    bin_of,
    buckets,
    checked,
    histogram,
    limited,
    percentiles,
    summary_of,
    unpack,
    value_of,
)
from homeport.kernel.errors import InvalidError
from homeport.link.messages import (
    STATUS_FAILURE,
    STATUS_IDLE_TIMEOUT,
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    STATUS_TIMEOUT,
)


def entry(status: int = STATUS_SUCCESS, *, idx: int = 0, took: float = 1.0) -> Entry:
    return Entry("fc-1", idx, 10.0, 12.0, 12.0 + took, "ta-1", status, "method")


def test_what_is_packed_comes_out_the_same() -> None:
    entries = [entry(idx=idx, took=idx / 3) for idx in range(5)]
    entries.append(Entry("", 0, 1.5, 0.0, 2.25, "", 503, "/a/b"))
    pack = Pack()
    for each in entries:
        pack.add(each)
    assert unpack(pack.encode()) == entries
    assert summary_of(pack.encode_summary()) == pack.summary
    assert len(pack) == pack.summary.total == 6


def test_a_pack_holds_each_word_once() -> None:
    pack = Pack()
    for idx in range(1000):
        pack.add(entry(idx=idx))
    assert len(pack.encode()) < 45 * 1000
    assert pack.encode().count(b"fc-1") == 1


def test_how_inputs_ended_is_counted() -> None:
    total = Summary()
    statuses = [STATUS_SUCCESS, STATUS_SUCCESS, STATUS_FAILURE, STATUS_TERMINATED]
    for status in [*statuses, STATUS_TIMEOUT, STATUS_IDLE_TIMEOUT]:
        total.add(entry(status))
    assert (total.total, total.succeeded, total.failed, total.timed_out) == (6, 2, 2, 2)


def test_summaries_add_up() -> None:
    parts = [Summary(), Summary()]
    whole = Summary()
    for number in range(10):
        each = entry(STATUS_SUCCESS if number % 3 else STATUS_FAILURE, took=number)
        parts[number % 2].add(each)
        whole.add(each)
    parts[0].merge(parts[1])
    assert parts[0] == whole


def test_requests_are_counted_by_the_hundreds_of_their_status() -> None:
    total = Summary()
    for status in (200, 204, 301, 404, 500, 503, 101, 0):
        total.add(entry(status))
    assert total.families() == {0: 1, 100: 1, 200: 2, 300: 1, 400: 1, 500: 2}
    assert total.answered_well == 4


def test_what_was_never_begun_has_no_execution_time() -> None:
    total = Summary()
    total.add(entry(STATUS_TERMINATED)._replace(started_at=0.0))
    assert total.execution == {}
    assert sum(total.latency.values()) == 1


@pytest.mark.parametrize("spread", [1.0, 0.001, 1000.0])
def test_percentiles_are_off_by_one_percent_at_most(spread: float) -> None:
    chance = random.Random(7)
    values = sorted(chance.expovariate(1 / spread) for _ in range(1001))
    found = percentiles(histogram(values), [50, 90, 99])
    for value, exact in zip(found, (values[500], values[900], values[990]), strict=True):
        assert value == pytest.approx(exact, rel=0.011)


def test_percentiles_of_little() -> None:
    assert percentiles({}) == []
    assert percentiles(histogram([2.0])) == pytest.approx([2.0] * 3, rel=0.011)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_is_a_short_time(seconds: float) -> None:
    assert value_of(bin_of(seconds)) < 2e-6


def test_ranges_begin_before_they_end_and_are_not_too_long() -> None:
    found = checked(1.0, 2.0)
    assert found == Range(1.0, 2.0)
    assert 1.0 in found
    assert 2.0 not in found
    for since, until in ((2.0, 2.0), (3.0, 2.0)):
        with pytest.raises(InvalidError, match="before its end"):
            checked(since, until)
    with pytest.raises(InvalidError, match="longer than 7 days"):
        checked(0.0, 7 * 86400 + 1, 7 * 86400)


def test_buckets_cover_the_range() -> None:
    assert buckets(Range(59.0, 121.0), 60) == (0, 3)
    assert buckets(Range(60.0, 120.0), 60) == (1, 2)
    with pytest.raises(InvalidError, match="1 or more"):
        buckets(Range(0.0, 1.0), 0)
    with pytest.raises(InvalidError, match="wider"):
        buckets(Range(0.0, BUCKETS_MAX + 1.0), 1)


@pytest.mark.parametrize("number", [0, FETCH_MAX + 1])
def test_so_many_entries_are_not_given(number: int) -> None:
    with pytest.raises(InvalidError, match=f"between 1 and {FETCH_MAX}"):
        limited(number, "The limit")
