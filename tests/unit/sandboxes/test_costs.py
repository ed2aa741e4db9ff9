"""What sandboxes cost, alone and by their tags."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest
from tests.unit.sandboxes.test_usage import RECORD, SAMPLES

from homeport.kernel.errors import InvalidError
from homeport.sandboxes import costs, wire
from homeport.sandboxes.costs import Prices, check_range, costs_of, groups_of
from homeport.sandboxes.usage import usage_between

HOUR = 3600.0


def tagged(**tags: str) -> costs.SandboxRecord:
    return msgspec.structs.replace(RECORD, tags=tags)


def test_what_was_asked_for_or_used_has_its_price() -> None:
    spec = msgspec.structs.replace(RECORD.spec, gpu_type="T4", gpu_count=2)
    record = msgspec.structs.replace(RECORD, spec=spec)
    usage = usage_between(record, SAMPLES, 0.0, 200.0)
    found = costs_of(record, usage, Prices(core=3600.0, gib=7200.0, gpus={"T4": 360.0}))
    # 10 s at one core and 10 s at the half that was asked for; 10 s at 1 GiB, 10 s at a half.
    assert found == {"CPU": Decimal(15), "Memory": Decimal(30), "T4": Decimal(20) * 2 / 10}
    assert set(costs_of(record, usage, Prices()).values()) == {Decimal(0)}
    shown = wire.stats(usage, found)
    assert Decimal(shown.cost) == Decimal(49)
    assert {name: Decimal(each) for name, each in shown.cost_by_resource.items()} == found
    assert not wire.stats(usage, {}).HasField("cost")


def test_sandboxes_are_grouped_by_the_values_of_their_tags() -> None:
    one = {"CPU": Decimal(1)}
    found = [(tagged(team="b"), one), (tagged(team="a", job="x"), one), (tagged(), one)]
    found += [(tagged(team="a"), {"Memory": Decimal(2)})]
    groups = groups_of(found, ["team"])
    assert [group.tags for group in groups] == [{"team": None}, {"team": "a"}, {"team": "b"}]
    assert groups[1].costs == {"CPU": 1, "Memory": 2}
    (whole,) = groups_of(found, [])
    assert (whole.tags, whole.costs) == ({}, {"CPU": 3, "Memory": 2})
    message = wire.stats_group(groups[0])
    assert not message.tags["team"].HasField("value")
    assert message.cost_str == "1"
    assert groups_of([], ["team"]) == []


def test_groups_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "GROUPS_MAX", 2)
    found = [(tagged(team=str(number)), {"CPU": Decimal(1)}) for number in range(3)]
    with pytest.raises(InvalidError, match="fewer tags"):
        groups_of(found, ["team"])


@pytest.mark.parametrize(
    ("since", "until", "says"),
    [
        (HOUR + 1, 0.0, "full hour"),
        (HOUR, HOUR * 2 + 0.5, "full hour"),
        (HOUR * 3, HOUR * 2, "before"),
        (HOUR * 500, 0.0, "before"),
        (HOUR, HOUR * 170, "7 days"),
    ],
)
def test_a_range_that_is_none(since: float, until: float, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        check_range(since, until, HOUR * 100)


def test_a_range_ends_now() -> None:
    assert check_range(HOUR, 0.0, HOUR * 100 + 5) == HOUR * 100 + 5
    assert check_range(HOUR, HOUR * 7 * 24 + HOUR, HOUR * 500) == HOUR * 169
