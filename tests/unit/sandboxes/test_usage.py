"""What a sandbox used, from samples."""

from __future__ import annotations

import msgspec
import pytest

from homeport.link.messages import UsageSample
from homeport.node.usage import SAMPLE_S, SAMPLES_MAX, UsageMeter
from homeport.sandboxes.model import SandboxRecord, SandboxSpec
from homeport.sandboxes.usage import GIB, percentile, usage_between

RECORD = SandboxRecord(
    sandbox_id="sb-1",
    task_id="ta-1",
    app_id="ap-1",
    is_v2=True,
    name="",
    tags={},
    spec=SandboxSpec(image_id="im-1", milli_cpu=500, memory_mb=512),
    created_at=90.0,
    started_at=100.0,
    finished_at=120.0,
)
SAMPLES = [
    UsageSample(100.0, 0.0, GIB),
    UsageSample(110.0, 10.0, GIB // 4),
    UsageSample(120.0, 11.0, 0),
]


def test_the_whole_life() -> None:
    usage = usage_between(RECORD, SAMPLES, 90.0, 200.0)
    assert usage.ran_s == 20.0
    assert usage.cores == [0.1, 1.0]
    assert usage.memory_gib == [0.25, 1.0]
    assert usage.core_s == pytest.approx(11.0)
    assert usage.memory_gib_s == pytest.approx(12.5)
    assert usage.asked_core_s == pytest.approx(10.0 + 5.0)
    assert usage.asked_memory_gib_s == pytest.approx(10.0 + 5.0)


def test_a_part_of_it() -> None:
    usage = usage_between(RECORD, SAMPLES, 115.0, 118.0)
    assert usage.ran_s == 3.0
    assert usage.cores == [0.1]
    assert usage.core_s == pytest.approx(0.3)


def test_nothing_was_measured() -> None:
    waiting = msgspec.structs.replace(RECORD, started_at=0.0, finished_at=0.0)
    usage = usage_between(waiting, [], 90.0, 100.0)
    assert (usage.ran_s, usage.cores, usage.core_s) == (0.0, [], 0.0)


def test_percentiles() -> None:
    assert percentile([1.0], 0.99) == 1.0
    assert percentile([float(n) for n in range(100)], 0.9) == 90.0


def test_samples_are_bounded_and_span_the_whole() -> None:
    meter = UsageMeter()
    for number in range(10 * SAMPLES_MAX):
        meter.add(UsageSample(float(number), float(number), 1))
    samples = meter.samples()
    assert len(samples) <= SAMPLES_MAX
    assert samples[0].time == 0.0
    assert samples[-1].time == 10.0 * SAMPLES_MAX - 1
    assert meter.pause_s > SAMPLE_S
