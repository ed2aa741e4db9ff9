"""How much memory this machine has left, and being woken when it runs short."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_PRESSURE: Final = Path("/proc/pressure/memory")
_TRIGGER: Final = b"some 300000 2000000\0"
"""Work stood still for want of memory for 300 ms of two seconds (without CAP_SYS_RESOURCE the kernel
takes multiples of two seconds only)."""
RESERVE_SHARE: Final = 0.1
RESERVE_MB_MIN: Final = 256
"""More than what the server keeps free itself (``memory_reserve_mb``): what waits goes first."""
RESERVE_MB_MAX: Final = 2048
TIGHT_SHARE: Final = 0.25


def memory_mb() -> tuple[int, int]:
    """MiB that could be used without swapping, and of all; zeros if the kernel does not say."""
    fields: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("MemAvailable", "MemTotal"):
                fields[name] = int(value.split()[0]) // 1024
    return fields.get("MemAvailable", 0), fields.get("MemTotal", 0)


def is_short(read: Callable[[], tuple[int, int]] = memory_mb) -> bool:
    """Whether what is left had better be kept for those who work."""
    available, total = read()
    reserve = max(RESERVE_MB_MIN, min(RESERVE_MB_MAX, int(total * RESERVE_SHARE)))
    return total > 0 and available < reserve


def is_tight(read: Callable[[], tuple[int, int]] = memory_mb) -> bool:
    """Whether it can be the machine's memory that work stands still for.

    The kernel counts containers too that want more than their own limit; nothing is gained for those.
    """
    available, total = read()
    return available < max(RESERVE_MB_MIN, int(total * TIGHT_SHARE))


class PressureWatch:
    """Calls ``on_pressure`` in the event loop when the kernel says that memory runs short.

    Kernels without pressure information say nothing; then only ``is_short`` tells.
    """

    def __init__(self, on_pressure: Callable[[], None]) -> None:
        self._on_pressure = on_pressure
        self._trigger = -1
        self._epoll: select.epoll | None = None

    @property
    def is_watching(self) -> bool:
        """Whether the kernel will say something."""
        return self._epoll is not None

    def start(self) -> None:
        """Begin to watch."""
        try:
            self._trigger = os.open(_PRESSURE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(self._trigger, _TRIGGER)
        except OSError:
            self.stop()
            return
        # Event loops wait for readable and writable only; this one is an "exceptional condition".
        self._epoll = select.epoll()
        self._epoll.register(self._trigger, select.EPOLLPRI)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._noticed)

    def stop(self) -> None:
        """Watch no longer. Idempotent."""
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        if self._trigger >= 0:
            os.close(self._trigger)
            self._trigger = -1

    def _noticed(self) -> None:
        if self._epoll is not None:
            self._epoll.poll(0)  # the event loop's own look at it has used the notice up
            self._on_pressure()
