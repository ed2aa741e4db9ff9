"""What a container has used so far, sample by sample, bounded however long it runs."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from homeport.kernel.clock import Clock
from homeport.link.messages import UsageSample

SAMPLE_S: Final = 5.0
"""Between two samples at first."""
SAMPLES_MAX: Final = 512
"""Then every second one goes, and they come half as often."""


class Measured(Protocol):
    """A container, as far as it is measured."""

    def usage(self) -> tuple[float, int]:
        """Processor seconds used, bytes of memory in use now."""
        ...


class UsageMeter:
    """Keeps samples, and takes them from ``begin`` to ``end``."""

    def __init__(self) -> None:
        self.pause_s = SAMPLE_S
        """Until the next one is wanted."""
        self._samples: list[UsageSample] = []
        self._container: Measured | None = None
        self._clock: Clock
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, container: Measured, clock: Clock) -> None:
        """Measure ``container`` from now on."""
        self._container, self._clock = container, clock
        self._measure()

    def end(self) -> None:
        """It has ended, and can be measured a last time."""
        if self._container is not None:
            self.cancel()
            self.add(self._sample(self._container))
            self._container = None

    def cancel(self) -> None:
        """Take no more samples."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def add(self, sample: UsageSample) -> None:
        """One more, later than all others."""
        if len(self._samples) >= SAMPLES_MAX:
            del self._samples[1::2]
            self.pause_s *= 2
        self._samples.append(sample)

    def samples(self) -> list[UsageSample]:
        """What there is, oldest first."""
        return list(self._samples)

    def until_now(self) -> list[UsageSample]:
        """The same, and how it stands at this moment."""
        if self._container is None:
            return self.samples()
        return [*self._samples, self._sample(self._container)]

    def _measure(self) -> None:
        assert self._container is not None
        self.add(self._sample(self._container))
        self._timer = asyncio.get_running_loop().call_later(self.pause_s, self._measure)

    def _sample(self, container: Measured) -> UsageSample:
        cpu_s, memory_bytes = container.usage()
        return UsageSample(self._clock.now(), cpu_s, memory_bytes)
