"""What a container has used so far, sample by sample, bounded however long it runs."""

from __future__ import annotations

from typing import Final

from homeport.link.messages import UsageSample

SAMPLE_S: Final = 5.0
"""Between two samples at first."""
SAMPLES_MAX: Final = 512
"""Then every second one goes, and they come half as often."""


class UsageMeter:
    """Keeps samples."""

    def __init__(self) -> None:
        self.pause_s = SAMPLE_S
        """Until the next one is wanted."""
        self._samples: list[UsageSample] = []

    def add(self, sample: UsageSample) -> None:
        """One more, later than all others."""
        if len(self._samples) >= SAMPLES_MAX:
            del self._samples[1::2]
            self.pause_s *= 2
        self._samples.append(sample)

    def samples(self) -> list[UsageSample]:
        """What there is, oldest first."""
        return list(self._samples)
