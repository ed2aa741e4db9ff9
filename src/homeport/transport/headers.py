"""The header fields of gRPC over HTTP/2: deadlines, statuses, messages, trailers. Pure functions."""

from __future__ import annotations

import re
from urllib.parse import quote

from homeport.transport.dispatch import Trailers

HeaderList = list[tuple[bytes, bytes]]

RESPONSE_HEADERS: HeaderList = [(b":status", b"200"), (b"content-type", b"application/grpc")]
STATUS_OK: HeaderList = [(b"grpc-status", b"0")]

MESSAGE_CHARS_MAX = 8 * 1024
"""Length of an encoded ``grpc-message``; clients end a connection whose header list is over 64 KiB."""
TRAILER_CHARS_MAX = 40 * 1024
"""All further trailers of one RPC together."""

_TIMEOUT = re.compile(r"[0-9]{1,8}[HMSmun]")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_RESERVED = frozenset({"grpc-status", "grpc-message", "content-type", "te", "connection"})


def parse_timeout(text: str) -> float:
    """Seconds of a ``grpc-timeout`` value such as ``100m``. Raises ``ValueError`` if malformed."""
    if _TIMEOUT.fullmatch(text) is None:
        raise ValueError(
            f"the grpc-timeout header {text[:32]!r} is malformed: it takes at most 8 digits and one of H, M, S, m, u, n"
        )
    return int(text[:-1]) * _UNITS[text[-1]]


def encode_message(message: str) -> bytes:
    """``grpc-message``: UTF-8, everything but printable ASCII (and ``%``) percent-encoded.

    A message whose encoding is over ``MESSAGE_CHARS_MAX`` is cut and ends with ``…``.
    """
    encoded = _quote(message[:MESSAGE_CHARS_MAX])
    if len(message) <= MESSAGE_CHARS_MAX and len(encoded) <= MESSAGE_CHARS_MAX:
        return encoded
    room = MESSAGE_CHARS_MAX - len(_quote("…"))
    kept: list[bytes] = []
    for start in range(0, len(message), 64):
        piece = _quote(message[start : start + 64])
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return b"".join(kept) + _quote("…")


def _quote(text: str) -> bytes:
    return quote(text, safe=_PRINTABLE, encoding="utf-8", errors="replace").encode("ascii")


def encode_trailers(trailers: Trailers) -> tuple[HeaderList, list[str]]:
    """Extra trailers as they go out, and the names of those that cannot.

    Left out are names and values that HTTP/2 does not allow (they would end the whole connection
    at the client), gRPC's own names, and what is over ``TRAILER_CHARS_MAX``.
    """
    encoded: HeaderList = []
    dropped: list[str] = []
    room = TRAILER_CHARS_MAX
    for name, value in trailers:
        size = len(name) + len(value) + 32
        if (
            size > room
            or name in _RESERVED
            or _NAME.fullmatch(name) is None
            or _VALUE.fullmatch(value) is None
        ):
            dropped.append(name)
            continue
        room -= size
        encoded.append((name.encode("ascii"), value.strip().encode("ascii")))
    return encoded, dropped


def status_trailers(status: int, message: str) -> HeaderList:
    """The trailers that end an RPC."""
    trailers = [(b"grpc-status", str(status).encode("ascii"))]
    if message:
        trailers.append((b"grpc-message", encode_message(message)))
    return trailers


def decode_headers(headers: tuple[tuple[bytes, bytes], ...]) -> dict[str, str]:
    """Request headers as text, the last of a repeated name kept; values are not unescaped."""
    return {
        name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in headers
    }
