"""Encryption of secret values at rest."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from homeport.kernel import ids
from homeport.kernel.errors import InternalError

_NONCE_BYTES: Final = 12


class SecretBox:
    """Seals values with the installation's key (AES-256-GCM), bound to the secret's id.

    Without the key file (``<home>/secret.key``) a copy of the database reveals only the keys'
    names.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(key)

    def derive_id(self, app_id: str, content: bytes) -> str:
        """The id of an app's secret with that content; it tells nothing about the content."""
        mark = hmac.new(self._key, content, hashlib.sha256).digest()
        return ids.derive(ids.SECRET, app_id, mark)

    def seal(self, secret_id: str, values: dict[str, str]) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        plain = msgspec.msgpack.encode(values)
        return nonce + self._cipher.encrypt(nonce, plain, secret_id.encode())

    def open(self, secret_id: str, sealed: bytes) -> dict[str, str]:
        """The values. Raises ``InternalError`` if they were sealed with another key."""
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            plain = self._cipher.decrypt(nonce, body, secret_id.encode())
        except InvalidTag:
            raise InternalError(
                f"secret {secret_id} cannot be decrypted: secret.key is not the key it was made with"
            ) from None
        return msgspec.msgpack.decode(plain, type=dict[str, str])
