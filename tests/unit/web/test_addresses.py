"""The host in what a caller gives as an address: nothing that is sent makes reading it fail."""

from __future__ import annotations

import pytest

from homeport.web.rpc import host_of


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://one.localhost:7460/path?query#part", "one.localhost:7460"),
        ("http://one.localhost?query", "one.localhost"),
        ("one.localhost/path", "one.localhost"),
        ("//one.localhost#part", "one.localhost"),
        ("http://[::1", "[::1"),
        ("\r\t[2J", "\r\t[2J"),
        ("", ""),
    ],
)
def test_host(url: str, host: str) -> None:
    assert host_of(url) == host
