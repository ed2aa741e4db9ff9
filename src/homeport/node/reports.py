"""What a task tells the server of its attempts, gathered where nobody waits for each of them.

Each message up the link costs both processes more than the output in it. So the start of an attempt
waits a moment for its output, and an output of a map for the next one as long as the container
finds another input at hand; the last one leaves at once, and takes the others along.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from homeport.link.messages import InputsStarted, Message, OutputItem, Outputs
from homeport.node.work import Key

LINGER_S = 0.005
"""No start waits longer for its output."""
PATIENT_S = 0.025
"""No report of a map's input waits longer (its caller's poll gathers outputs for about as long)."""
OUTPUTS_MAX = 32
"""So many outputs leave together at most."""
BYTES_MAX = 64 * 1024
"""An output beyond this size is not kept waiting."""


class Reports:
    """The reports of one task. ``send`` may lose a message with the link, ``send_sure`` may not."""

    def __init__(
        self,
        task_id: str,
        send: Callable[[Message], object],
        send_sure: Callable[[Outputs], None],
    ) -> None:
        self._task_id = task_id
        self._send = send
        self._send_sure = send_sure
        self._started: dict[Key, None] = {}
        self._started_at = 0.0
        self._outputs: list[OutputItem] = []
        self._timer: asyncio.TimerHandle | None = None

    def started(self, keys: Sequence[Key], time: float, *, patient: bool) -> None:
        """These attempts were handed to the container at the Unix time ``time``."""
        self._started_at = self._started_at if self._started else time
        self._started.update(dict.fromkeys(keys))
        self._wait(PATIENT_S if patient else LINGER_S)

    def finished(self, items: Sequence[OutputItem], *, patient: bool = False) -> None:
        """These attempts ended; ``patient``: their reports may wait for further ones."""
        if not items:
            return
        for item in items:
            self._started.pop((item.input_id, item.retry_count), None)
        self._outputs.extend(items)
        if not patient or len(self._outputs) >= OUTPUTS_MAX or any(map(_is_large, items)):
            self.flush()
        else:
            self._wait(PATIENT_S)

    def flush(self) -> None:
        """Send what waits."""
        if self._started:
            started, self._started = list(self._started), {}
            self._send(InputsStarted(self._task_id, started, self._started_at))
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._send_sure(Outputs(0, self._task_id, outputs))

    def _wait(self, seconds: float) -> None:
        # Not taken back when something leaves earlier: it then finds less, or nothing.
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.flush()


def _is_large(item: OutputItem) -> bool:
    return len(item.result.data or b"") + len(item.result.serialized_tb) > BYTES_MAX
