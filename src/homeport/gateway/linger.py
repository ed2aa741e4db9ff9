"""The end of a connection whose client has not sent everything yet but is answered already.

A connection that is closed with something unread is reset, and its client may lose the answer.
"""

from __future__ import annotations

import asyncio
from typing import Final

LINGER_S: Final = 30.0
LINGER_IDLE_S: Final = 5.0
"""So long a client is listened to, and while it sends."""


class Linger:
    """Closes ``transport`` when its client has closed it, or says no more."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + LINGER_S
        self._heard = False
        if transport.can_write_eof():
            transport.write_eof()
        if not transport.is_reading():
            transport.resume_reading()
        self._timer = self._loop.call_later(LINGER_IDLE_S, self._look)

    def heard(self) -> None:
        """The client sent something, which is thrown away."""
        self._heard = True

    def stop(self) -> None:
        """The connection is closed."""
        self._timer.cancel()

    def _look(self) -> None:
        if not self._heard or self._loop.time() >= self._until:
            self._transport.close()
            return
        self._heard = False
        self._timer = self._loop.call_later(LINGER_IDLE_S, self._look)
