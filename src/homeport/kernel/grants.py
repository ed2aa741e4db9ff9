"""URL tokens that are their own proof: what they allow, signed and with an end."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from homeport.kernel.errors import PermissionDeniedError

_SIGNATURE_BYTES: Final = 20


class Expiring(Protocol):
    """What a token can carry: a msgspec struct with an end in Unix seconds."""

    @property
    def expires_at(self) -> float: ...


G = TypeVar("G", bound=Expiring)


class GrantSigner(Generic[G]):
    """Turns grants of one kind into unforgeable tokens with the installation's key, and back.

    ``purpose`` keeps kinds apart: a token for one of them is not valid for another.
    """

    def __init__(self, key: bytes, kind: type[G], *, purpose: str = "") -> None:
        if purpose:
            key = hmac.new(key, purpose.encode(), hashlib.sha256).digest()
        self._key = key
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(kind)

    def token(self, grant: G) -> str:
        """``grant`` in characters that need no escaping in a URL."""
        body = self._encoder.encode(grant)
        return base64.urlsafe_b64encode(self._sign(body) + body).decode().rstrip("=")

    def verify(self, token: str, now: float) -> G:
        """The grant in ``token``.

        Raises ``PermissionDeniedError`` if it was not signed here or has expired.
        """
        try:
            data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            data = b""
        signature, body = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(body)):
            raise PermissionDeniedError("this URL is not signed by this server")
        grant = self._decoder.decode(body)
        if grant.expires_at < now:
            raise PermissionDeniedError("this URL has expired; ask for a new one")
        return grant

    def _sign(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, hashlib.sha256).digest()[:_SIGNATURE_BYTES]
