"""Which server a TLS client means: the name in its first message, which is passed on unread."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

BYTES_MAX: Final = 64 * 1024
"""A first message that is longer is none."""
_READ_BYTES: Final = 16 * 1024


class Peek:
    """Takes what a client sends until ``name`` is known; OpenSSL reads it, as it does for servers.

    ``is_over`` when there is nothing more to learn; ``name`` is then ``None`` if the client named
    no server, or does not speak TLS.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.is_over = False
        self._incoming = ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self._named
        self._reader = context.wrap_bio(self._incoming, ssl.MemoryBIO(), server_side=True)

    def feed(self, data: bytes) -> None:
        """The next bytes of the client."""
        self._incoming.write(data)
        try:
            self._reader.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError:
            pass  # of our own making, once the name is known
        self.is_over = True

    def _named(self, _socket: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int:
        self.name = name
        return ssl.ALERT_DESCRIPTION_ACCESS_DENIED  # go no further


async def read_hello(reader: asyncio.StreamReader) -> tuple[str | None, bytes]:
    """The name of the server that a client means, and all that was read of it."""
    peek = Peek()
    seen = bytearray()
    while not peek.is_over and len(seen) < BYTES_MAX:
        data = await reader.read(_READ_BYTES)
        if not data:
            break
        seen += data
        peek.feed(data)
    return peek.name, bytes(seen)


def refusal() -> bytes:
    """A TLS alert, "access denied", which programs report as such."""
    fatal, access_denied = 2, 49
    return bytes([21, 3, 1, 0, 2, fatal, access_denied])
