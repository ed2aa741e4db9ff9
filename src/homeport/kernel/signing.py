"""Short-lived signed tokens: JSON Web Tokens with HMAC-SHA-256, as the client reads them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any, Final

import msgspec

from homeport.kernel.clock import Clock
from homeport.kernel.decoding import UNREADABLE
from homeport.kernel.errors import UnauthenticatedError

_KEY_BYTES: Final = 32
_HEADER: Final = {"alg": "HS256", "typ": "JWT"}


class Claims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a token says. ``exp`` and ``iat`` are Unix seconds (the client reads ``exp``)."""

    sub: str
    """Whom it was given to: a token's or a task's id."""
    aud: str
    """What it is good for; a token for one purpose is refused for another."""
    iat: int
    exp: int
    scope: str = ""
    """What it is limited to, in the words of ``aud``: an object's id, a URL."""


class Signer:
    """Issues and checks tokens with one secret key."""

    def __init__(self, key: bytes, clock: Clock) -> None:
        if len(key) < _KEY_BYTES:
            raise ValueError(f"a signing key has at least {_KEY_BYTES} bytes")
        self._key = key
        self._clock = clock

    @classmethod
    def from_file(cls, file: Path, clock: Clock) -> Signer:
        """With the key in ``file``, which is created (0600) if missing: tokens outlive restarts."""
        try:
            key = file.read_bytes()
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True)
            key = secrets.token_bytes(_KEY_BYTES)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(key)
        return cls(key, clock)

    def issue(self, subject: str, audience: str, ttl_s: float, *, scope: str = "") -> str:
        """A token for ``subject``, good for ``audience`` during ``ttl_s`` seconds."""
        now = int(self._clock.now())
        claims = Claims(sub=subject, aud=audience, iat=now, exp=now + int(ttl_s), scope=scope)
        signed = f"{_encode(_HEADER)}.{_encode(claims)}"
        return f"{signed}.{self._signature(signed)}"

    def verify(self, token: str, audience: str) -> Claims:
        """What ``token`` says. Raises ``UnauthenticatedError`` if it is not ours, for another
        purpose, or expired."""
        signed, _, signature = token.rpartition(".")
        try:
            genuine = hmac.compare_digest(signature.encode(), self._signature(signed).encode())
            payload = _unbase64(signed.partition(".")[2])
            claims = msgspec.json.decode(payload, type=Claims) if genuine else None
        except UNREADABLE:
            claims = None
        if claims is None or claims.aud != audience:
            raise UnauthenticatedError("the access token is not one of this server's")
        if claims.exp <= self._clock.now():
            raise UnauthenticatedError("the access token has expired")
        return claims

    def _signature(self, signed: str) -> str:
        return _base64(hmac.new(self._key, signed.encode(), hashlib.sha256).digest())


def _encode(value: Any) -> str:
    return _base64(msgspec.json.encode(value))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
