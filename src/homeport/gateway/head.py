"""Bounds of a request's head: what comes before the body may be neither endless nor take for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from homeport.gateway.doorman import Headers, Refusal

HEAD_BYTES_MAX: Final = 64 * 1024
"""Of the address and of all headers together; as much as an HTTP/2 request may have."""
HEAD_S: Final = 60.0
"""How long a head may take once it has begun."""

URL_TOO_LONG: Final = Refusal(
    414, f"The address of this request is over {HEAD_BYTES_MAX // 1024} KiB; send data as its body."
)
HEAD_TOO_LARGE: Final = Refusal(
    431, f"The headers of this request are over {HEAD_BYTES_MAX // 1024} KiB; send smaller ones."
)
TWO_HOSTS: Final = Refusal(400, "This request has more than one Host header.")
TOO_SLOW: Final = Refusal(
    408, f"The headers of this request did not come within {HEAD_S:g} seconds."
)


class HeadGuard:
    """Watches the heads of one connection's requests; tell it what the parser tells.

    Parsers keep a header's value until it is whole, so parts are counted as they come in.
    ``too_slow`` is called when a head takes too long.
    """

    def __init__(self, too_slow: Callable[[Refusal], None]) -> None:
        self._too_slow = too_slow
        self._is_open = False
        self._is_new = False
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """A request begins."""
        self._is_open = self._is_new = True
        self._size = 0

    def complete(self, url: bytes, headers: Headers) -> Refusal | None:
        """The head is there; what is wrong with it, if anything is."""
        self.stop()
        size = len(url)
        if size > HEAD_BYTES_MAX:
            return URL_TOO_LONG
        hosts = 0
        for name, value in headers:
            size += len(name) + len(value)
            if len(name) == 4 and name.lower() == b"host":
                hosts += 1
        if size > HEAD_BYTES_MAX:
            return HEAD_TOO_LARGE
        return TWO_HOSTS if hosts > 1 else None

    def received(self, size: int, url: bytes) -> Refusal | None:
        """So many bytes were parsed; whether that is too much for a head that is still not there.

        The part in which a head began is not counted: it may have the end of a body before it.
        """
        if not self._is_open:
            return None
        if self._is_new:
            self._is_new = False
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(HEAD_S, self._too_slow, TOO_SLOW)
            return None
        self._size += size
        if self._size <= HEAD_BYTES_MAX:
            return None
        self.stop()
        return URL_TOO_LONG if len(url) > HEAD_BYTES_MAX else HEAD_TOO_LARGE

    def stop(self) -> None:
        """No head is awaited."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
