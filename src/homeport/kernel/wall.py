"""Waiting for a time of day: on a clock that may be set while one waits."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import sys
import time
from typing import Final, Protocol


class WallClock(Protocol):
    """The time of day, and how to wait for it."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        ...

    async def reached(self, when: float) -> None:
        """Return when the clock shows ``when`` (may be infinite), or earlier if it was set."""
        ...


class SystemWallClock:
    """The machine's own. On Linux the kernel says when it was set; elsewhere one looks again."""

    def now(self) -> float:
        return time.time()

    async def reached(self, when: float) -> None:
        if sys.platform == "linux":
            await _Timer(min(when, _FOREVER_S)).expired()
        else:
            await asyncio.sleep(min(max(0.0, when - time.time()), _LOOK_AGAIN_S))


_LOOK_AGAIN_S: Final = 30.0
_FOREVER_S: Final = 4.0e9  # the year 2096: a time that the kernel surely takes
_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME
_CANCEL_ON_SET: Final = 2  # TFD_TIMER_CANCEL_ON_SET
_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    """``struct itimerspec``: interval and value, each seconds and nanoseconds."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


class _Timer:
    """A timer of the kernel on the time of day (timerfd_create(2))."""

    def __init__(self, when: float) -> None:
        self._fd = _checked(_libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            fraction, seconds = math.modf(max(when, 1e-9))  # 0 would disarm it
            spec = _Spec(0, 0, int(seconds), int(fraction * 1e9))
            flags = _ABSOLUTE | _CANCEL_ON_SET
            _checked(_libc.timerfd_settime(self._fd, flags, ctypes.byref(spec), None))
        except OSError:
            os.close(self._fd)
            raise

    async def expired(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)
            os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
