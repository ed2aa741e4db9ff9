"""Hostile HTTP/1.1 requests for the routes of the gateway."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final

ROUTES: Final = (
    "/healthz",
    "/apps/{}",
    "/apps/{}/logs",
    "/blob/{}",
    "/block/{}",
    "/_images",
    "/_images/remove",
    "/_images/prune",
    "/_images/caches/prune",
    "/_images/bundle",
    "/_node/link",
    "/_node/mounts/{}",
    "/_node/files/{}",
    "/_node/volumes/{}/changes",
    "/_node/volumes/{}/commit",
    "/_node/blocks/missing",
    "/_node/blocks/{}",
    "/{}",
)
_METHODS: Final = ("GET", "GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "BREW")
_PLACES: Final = (
    "ap-0000000000000000000000",
    "bl-0000000000000000000000",
    "vo-0000000000000000000000",
    "0" * 64,
    "..%2f..%2f..%2fetc%2fpasswd",
    "..",
    "%00",
    "%ff%fe",
    "a" * 6000,
    "%F0%9F%A7%A8",
    ";",
)
_QUERIES: Final = (
    "",
    "?t=",
    "?t=AAAA",
    "?t=" + "A" * 90,
    "?t=%00",
    "?t=a&t=b",
    "?image=..",
    "?since=-1&after=x",
)
BODIES: Final = (
    b"",
    b"\x00" * 70,
    b"{}",
    b'{"ids": [null]}',
    b"<Part></Part>",
    b"\x81\xa1a\xc1",
    b"[" * 5000,
    b'{"x":' + b"[" * 5000,
    b'{"image_ids": ["\xeb"]}',
    b"\x95\xa2\xeb\\",
    b"\x81\xa1x" + b"\x91" * 5000,
)
_REST_S: Final = 0.3
_ANSWER_S: Final = 30.0


def request(choice: random.Random, headers: Sequence[str]) -> bytes:
    """One request; some are not HTTP."""
    path = choice.choice(ROUTES).format(choice.choice(_PLACES)) + choice.choice(_QUERIES)
    body = choice.choice((*BODIES, choice.randbytes(200)))
    lines = [f"{choice.choice(_METHODS)} {path} HTTP/1.1", "Host: localhost", *headers]
    length = choice.random()
    if length < 0.8:
        lines.append(f"Content-Length: {len(body)}")
    elif length < 0.9:
        lines.append(f"Content-Length: {choice.choice(('-1', '9' * 30, 'x', '1000'))}")
    else:
        lines.append("Transfer-Encoding: chunked")
    if choice.random() < 0.1:
        lines.append(f"Range: bytes={choice.choice(('-1-', '5-1', '0-', 'x', '0-0,1-1'))}")
    lines.append("Connection: close")
    data = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    if choice.random() < 0.1:
        at = choice.randrange(len(data))
        data = data[:at] + choice.randbytes(3) + data[at + 3 :]
    return data


async def ask(port: int, data: bytes) -> int:
    """The status that the server answers with; 0 if it hangs up, or waits for the rest."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        line = await _line(reader, _REST_S)
        if not line:
            writer.write_eof()
            line = await _line(reader, _ANSWER_S)
    except ConnectionError:
        return 0
    finally:
        writer.close()
    return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0


async def _line(reader: asyncio.StreamReader, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await reader.readline()
    except TimeoutError:
        return b""
