"""How many of something to keep prepared: as many as are asked for in a burst. Pure."""

from __future__ import annotations

from typing import Final

CALM_S: Final = 60.0
"""After so long without anybody having had to wait for one, fewer are kept."""


class Stock:
    """Between ``least`` and ``most``: doubled when it was empty, halved after a calm time."""

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = max(least, most)
        self._wanted = least
        self._missed_at = 0.0

    @property
    def wanted(self) -> int:
        """So many should be ready."""
        return self._wanted

    @property
    def is_raised(self) -> bool:
        """Whether it is more than the least."""
        return self._wanted > self._least

    def missed(self, now: float) -> None:
        """Somebody wanted one, and none was ready. ``now`` is in seconds of any clock."""
        self._wanted = min(self._most, max(1, 2 * self._wanted))
        self._missed_at = now

    def want(self) -> None:
        """Have one ready, though nobody asked."""
        self._wanted = min(self._most, max(1, self._wanted))

    def used(self, now: float) -> None:
        """Somebody took one that was ready: it is not calm."""
        self._missed_at = now

    def calm(self, now: float) -> float:
        """Keep fewer if it was calm long enough; in how many seconds to ask again, 0 = never."""
        if not self.is_raised:
            return 0.0
        left = self._missed_at + CALM_S - now
        if left > 0:
            return left
        self._wanted = max(self._least, self._wanted // 2)
        self._missed_at = now
        return CALM_S if self.is_raised else 0.0
