"""Who may use web functions that are not for everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from homeport.web.service import Target
from homeport.web.tokens import ProxyTokens


class Access:
    """Callers show a proxy token in two headers or as a bearer, or a short-lived token of theirs."""

    SENTENCE: Final = (
        "This web function is for callers with a proxy token: send its two parts in the headers "
        "Modal-Key and Modal-Secret."
    )

    def __init__(self, tokens: ProxyTokens) -> None:
        self._tokens = tokens

    def is_known(self, target: Target, headers: Mapping[bytes, bytes]) -> bool:
        """Whether ``headers`` (names in lower case) open ``target``."""
        environment = target.app.environment
        key = _text(headers, b"modal-key")
        if key:
            return self._tokens.verify(key, _text(headers, b"modal-secret"), environment)
        short = _bearer(headers, b"modal-authorization")
        if short:
            return self._tokens.verify_short(short, target.record.function_id)
        key, _, secret = _bearer(headers, b"authorization").partition(".")
        return bool(key) and self._tokens.verify(key, secret, environment)


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1").strip()


def _bearer(headers: Mapping[bytes, bytes], name: bytes) -> str:
    kind, _, token = _text(headers, name).partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""
