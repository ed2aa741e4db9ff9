"""Arrivals with the shape of published traces; seeded.

*Language models*: requests come in bursts (gamma gaps with a coefficient of variation of about 4,
under a rate that itself swings), and run for log-normal times with a long tail, as in the traces of
public chat services (BurstGPT, Azure LLM inference 2023).

*Functions*: a few functions have most of the calls (Zipf), about half of all functions run by
timers, the rest at random, and half of the runs take less than a second while some take minutes, as
Shahrad et al. found in Azure Functions (2020).
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator

from .world import Arrival


def language_model(
    function_id: str, *, seconds: float, rate: float, seed: int
) -> Iterator[Arrival]:
    """Requests to one model; ``rate`` is the mean number a second."""
    chance = random.Random(seed)
    shape = 1 / 16  # of the gaps: variation 4
    at = 0.0
    while True:
        swing = 1 + 0.8 * math.sin(2 * math.pi * at / 600)
        at += chance.gammavariate(shape, 1 / (shape * rate * swing))
        if at > seconds:
            return
        yield Arrival(at, function_id, min(120.0, chance.lognormvariate(1.2, 0.9)))


def many_functions(
    function_ids: list[str], *, seconds: float, rate: float, seed: int
) -> Iterator[Arrival]:
    """Calls of many functions, ``rate`` a second altogether."""
    chance = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(function_ids))]
    total = sum(weights)
    streams = [
        _one_function(
            name,
            seconds=seconds,
            rate=rate * weight / total,
            median_s=chance.lognormvariate(-0.4, 1.4),
            is_timed=chance.random() < 0.5,
            seed=chance.randrange(1 << 30),
        )
        for name, weight in zip(function_ids, weights, strict=True)
    ]
    yield from heapq.merge(*streams, key=lambda arrival: arrival.at)


def _one_function(
    name: str, *, seconds: float, rate: float, median_s: float, is_timed: bool, seed: int
) -> Iterator[Arrival]:
    chance = random.Random(seed)
    at = chance.uniform(0, 1 / rate)
    while at <= seconds:
        yield Arrival(at, name, min(300.0, median_s * chance.lognormvariate(0, 0.5)))
        at += 1 / rate if is_timed else chance.expovariate(rate)
