from __future__ import annotations

import pytest

from homeport.history.usage import Used, used_by_bucket
from homeport.link.messages import UsageSample

GIB = 1024**3


def test_what_containers_used_is_spread_over_the_time_between_samples() -> None:
    one = [UsageSample(30.0, 0.0, GIB), UsageSample(90.0, 60.0, GIB)]  # a core
    other = [UsageSample(60.0, 5.0, 0), UsageSample(70.0, 25.0, 2 * GIB)]  # two, for ten seconds
    found = used_by_bucket([one, other, [], one[:1]], 0, 5, 60, now=600.0)
    assert found == {
        0: Used(60, core_s=30.0, memory_gib_s=30.0, cores_max=1.0, memory_gib_max=1.0),
        1: Used(60, core_s=50.0, memory_gib_s=50.0, cores_max=2.0, memory_gib_max=2.0),
    }
    assert found[1].cores == pytest.approx(50 / 60)


def test_a_bucket_that_is_not_over_is_as_long_as_it_has_been() -> None:
    samples = [UsageSample(60.0, 0.0, 0), UsageSample(70.0, 10.0, 0)]
    (used,) = used_by_bucket([samples], 1, 2, 60, now=70.0).values()
    assert used.cores == pytest.approx(1.0)


def test_only_what_was_asked_for_is_told() -> None:
    samples = [UsageSample(0.0, 0.0, 0), UsageSample(600.0, 60.0, 0), UsageSample(600.0, 60.0, 0)]
    found = used_by_bucket([samples], 2, 4, 60, now=600.0)
    assert [*found] == [2, 3]
    assert found[3].cores == pytest.approx(0.1)
