"""What a task tells the server of its attempts, gathered while the container has more to do.

Each message up the link costs both processes more than the output in it. So the start of an attempt
waits a moment for its output, and an output waits for the next one as long as the container finds
another input at hand; the output of the last one leaves at once, and takes the others along.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from homeport.link.messages import InputsStarted, Message, OutputItem, Outputs
from homeport.node.work import Key

LINGER_S = 0.005
"""No report waits longer."""
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

    def started(self, keys: Sequence[Key], time: float) -> None:
        """These attempts were handed to the container at the Unix time ``time``."""
        self._started_at = self._started_at if self._started else time
        self._started.update(dict.fromkeys(keys))
        self._wait()

    def finished(self, items: Sequence[OutputItem], *, more: bool) -> None:
        """These attempts ended; ``more``: the container goes on with another at once."""
        for item in items:
            self._started.pop((item.input_id, item.retry_count), None)
        self._outputs.extend(items)
        if not more or len(self._outputs) >= OUTPUTS_MAX or any(map(_is_large, items)):
            self.flush()
        elif self._outputs:
            self._wait()

    def flush(self) -> None:
        """Send what waits."""
        if self._started:
            started, self._started = list(self._started), {}
            self._send(InputsStarted(self._task_id, started, self._started_at))
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._send_sure(Outputs(0, self._task_id, outputs))

    def _wait(self) -> None:
        # Not taken back when something leaves earlier: it then finds less, or nothing.
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.flush()


def _is_large(item: OutputItem) -> bool:
    return len(item.result.data or b"") + len(item.result.serialized_tb) > BYTES_MAX
