"""Signed URLs: the data plane carries no credentials, so each URL is a capability."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

import msgspec

from homeport.blobs.model import Grant
from homeport.kernel.errors import PermissionDeniedError

_SIGNATURE_BYTES: Final = 20


class UrlSigner:
    """Turns grants into unforgeable URL tokens with the installation's key, and back."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Grant)

    def url(self, base: str, grant: Grant) -> str:
        """The URL below ``base`` (no trailing slash) that carries ``grant``."""
        return f"{base}/blob/{grant.blob_id}?t={self.token(grant)}"

    def token(self, grant: Grant) -> str:
        body = self._encoder.encode(grant)
        return base64.urlsafe_b64encode(self._sign(body) + body).decode().rstrip("=")

    def verify(self, token: str, now: float) -> Grant:
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
