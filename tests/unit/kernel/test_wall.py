"""Waiting for a time of day."""

from __future__ import annotations

import asyncio
import os
import time

from homeport.kernel.wall import SystemWallClock


def test_reached_when_it_is_time() -> None:
    async def wait() -> float:
        when = time.time() + 0.1
        async with asyncio.timeout(20):
            await SystemWallClock().reached(when)
        return time.time() - when

    assert asyncio.run(wait()) >= 0


def test_what_has_passed_is_reached() -> None:
    async def wait() -> None:
        async with asyncio.timeout(20):
            for when in (0.0, -1.0, time.time() - 5):
                await SystemWallClock().reached(when)

    asyncio.run(wait())


def test_waiting_for_ever_can_be_ended() -> None:
    async def wait() -> list[str]:
        before = os.listdir("/proc/self/fd")
        waiting = asyncio.ensure_future(SystemWallClock().reached(float("inf")))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert len(os.listdir("/proc/self/fd")) == len(before)
        return before

    assert asyncio.run(wait())
