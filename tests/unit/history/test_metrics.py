"""Which series there are, and their points."""

from __future__ import annotations

import pytest

from homeport.history.metrics import (
    BUCKETS_S,
    FUNCTION_ROWS,
    POINTS_MAX,
    SERVER_ROWS,
    Row,
    chosen,
    points,
    window,
)
from homeport.history.model import Entry, Summary
from homeport.history.statistics import Containers
from homeport.history.usage import Used
from homeport.kernel.errors import InvalidError, UnimplementedError
from homeport.link.messages import STATUS_FAILURE, STATUS_SUCCESS

DAY_S = 86400.0


@pytest.mark.parametrize(
    ("seconds", "bucket_s"),
    [(60.0, 60), (3600.0, 60), (6000.0, 60), (6001.0, 120), (DAY_S, 900), (31 * DAY_S, 28800)],
)
def test_buckets_are_as_wide_as_a_hundred_points_need(seconds: float, bucket_s: int) -> None:
    assert window(DAY_S, DAY_S + seconds, None).bucket_s == bucket_s


def test_bounds_are_rounded_down() -> None:
    found = window(119.0, 361.0, 60)
    assert (found.first, found.end) == (1, 6)
    assert (found.span.since, found.span.until) == (60.0, 360.0)


def test_impossible_windows_say_what_to_do() -> None:
    with pytest.raises(InvalidError, match="61 s wide; there are 60, 120"):
        window(0.0, 3600.0, 61)
    with pytest.raises(InvalidError, match="use wider buckets"):
        window(0.0, 60.0 * (POINTS_MAX + 1), 60)
    with pytest.raises(InvalidError, match="31 days"):
        window(0.0, 31 * DAY_S + 1, None)
    assert BUCKETS_S[-1] == DAY_S


def test_groups_are_chosen() -> None:
    assert chosen([], is_server=False) == FUNCTION_ROWS
    assert chosen([], is_server=True) == SERVER_ROWS
    assert {row.group for row in chosen(["containers"], is_server=True)} == {"containers"}
    with pytest.raises(InvalidError, match="'requests'; there are calls, containers, cpu, memory"):
        chosen(["requests"], is_server=False)
    with pytest.raises(UnimplementedError, match="'gpu' yet"):
        chosen(["gpu", "calls"], is_server=False)


@pytest.mark.parametrize("rows", [FUNCTION_ROWS, SERVER_ROWS])
def test_names_are_unique_and_end_with_how_they_are_made(rows: list[Row]) -> None:
    names = [series.name for row in rows for series in row.series]
    assert len(set(names)) == len(names)
    made = {"count", "p50", "p90", "p99", "mean", "max"}
    assert {name.rpartition("_")[2] for name in names} == made


def test_points() -> None:
    ended = Summary()
    for status in (STATUS_SUCCESS, STATUS_SUCCESS, STATUS_FAILURE):
        ended.add(Entry("fc-1", 0, 60.0, 61.0, 63.0, "ta-1", status, ""))
    containers = Containers(total=2, started=1)
    used = Used(60.0, core_s=30.0, memory_gib_s=15.0, cores_max=2.0, memory_gib_max=1.0)
    series = {each.name: each for row in FUNCTION_ROWS for each in row.series}

    def of(name: str) -> list[tuple[float, float | None]]:
        return points(series[name], window(60.0, 180.0, 60), {1: ended}, {2: containers}, {1: used})

    assert of("cpu_cores_mean") == [(60.0, 0.5), (120.0, 0.0)]
    assert of("cpu_cores_max") == [(60.0, 2.0), (120.0, 0.0)]
    assert of("memory_mean") == [(60.0, 0.25), (120.0, 0.0)]
    assert of("successful_calls_count") == [(60.0, 2.0), (120.0, 0.0)]
    assert of("failed_calls_count") == [(60.0, 1.0), (120.0, 0.0)]
    assert of("present_containers_count") == [(60.0, 0.0), (120.0, 2.0)]
    (_, execution), missing = of("execution_time_p50")
    assert execution == pytest.approx(2.0, rel=0.011)
    assert missing == (120.0, None)


def test_requests_by_status() -> None:
    ended = Summary()
    for status in (200, 404, 0):
        ended.add(Entry("", 0, 60.0, 0.0, 63.0, "ta-1", status, "/"))
    series = {each.name: each for row in SERVER_ROWS for each in row.series}
    for name, count in (("2xx", 1.0), ("4xx", 1.0), ("5xx", 0.0), ("unanswered", 1.0)):
        found = points(
            series[f"{name}_requests_count"], window(60.0, 120.0, 60), {1: ended}, {}, {}
        )
        assert found == [(60.0, count)]
