"""How many requests one caller may make: a token bucket for each."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from homeport.kernel.clock import Clock
from homeport.kernel.errors import ExhaustedError
from homeport.rpc.context import Identity, caller_of

BURST_S: Final = 5.0
"""What a caller left unused so long ago, it may still use."""
CALLERS_MAX: Final = 10_000
"""Callers that are remembered; the ones longest silent go, and begin anew."""


class Rates:
    """Counts the requests of callers; ``per_s`` of each are taken in the long run, 0 = any number."""

    def __init__(self, clock: Clock, per_s: float) -> None:
        self._clock = clock
        self._per_s = per_s
        self._callers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, identity: Identity) -> None:
        """Count one. Raises ``ExhaustedError``, which says when to come back, if it is one too many."""
        if not self._per_s:
            return
        most = self._per_s * BURST_S
        now = self._clock.monotonic()
        caller = caller_of(identity)
        left, at = self._callers.pop(caller, (most, now))
        left = min(most, left + (now - at) * self._per_s)
        allowed = left >= 1.0
        self._callers[caller] = (left - allowed, now)
        while len(self._callers) > CALLERS_MAX:
            self._callers.popitem(last=False)
        if not allowed:
            raise ExhaustedError(
                f"more than {self._per_s:g} requests/s of one caller (setting caller_requests_per_s); "
                "slow down and try again",
                retry_after_s=1.0,
            )
