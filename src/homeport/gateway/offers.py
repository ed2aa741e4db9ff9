"""Requests that offer to go on in HTTP/2 (``Upgrade: h2c``): the offer is passed over in silence.

The parser takes every upgrade for the end of its request and has no body then. Clients that make the
offer by default send bodies all the same.
"""

from __future__ import annotations

from typing import Any

import httptools

from homeport.gateway.doorman import Headers


def has_offer(headers: Headers) -> bool:
    """Whether ``headers`` make that offer."""
    return any(
        name.lower() == b"upgrade" and value.strip().lower() == b"h2c" for name, value in headers
    )


def without_offer(headers: Headers) -> Headers:
    """``headers`` without it."""
    return [pair for pair in headers if pair[0].lower() not in (b"upgrade", b"http2-settings")]


def has_body(headers: Headers) -> bool:
    """Whether a request with ``headers`` has a body."""
    return any(
        name.lower() == b"transfer-encoding"
        or (name.lower() == b"content-length" and value.strip(b" \t0") != b"")
        for name, value in headers
    )


def parser_of_body(protocol: Any, headers: Headers) -> httptools.HttpRequestParser:
    """A parser that tells ``protocol`` of the body that follows ``headers``, and what comes after it.

    It tells it of a head before, which is to be ignored. Raises ``httptools.HttpParserError``.
    """
    parser = httptools.HttpRequestParser(protocol)
    framing = [
        b"%b: %b\r\n" % pair
        for pair in headers
        if pair[0].lower() in (b"transfer-encoding", b"content-length")
    ]
    parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
    return parser
