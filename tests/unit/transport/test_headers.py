"""Header fields of gRPC."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.transport.headers import (
    MESSAGE_CHARS_MAX,
    TRAILER_CHARS_MAX,
    encode_message,
    encode_trailers,
    parse_timeout,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1H", 3600), ("2M", 120), ("3S", 3), ("40m", 0.04), ("50u", 50e-6), ("6n", 6e-9), ("0S", 0)],
)
def test_timeouts(text: str, seconds: float) -> None:
    assert parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "S", "-1S", "1s", "123456789S", "1.5S", "1S ", "١S"])
def test_malformed_timeouts(text: str) -> None:
    with pytest.raises(ValueError, match="grpc-timeout"):
        parse_timeout(text)


@given(st.text(max_size=300))
def test_messages_come_back_whole(message: str) -> None:
    encoded = encode_message(message)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert unquote(encoded.decode()) == message.encode(errors="replace").decode()


@given(st.text(min_size=2000, max_size=2100), st.integers(1, 10))
def test_long_messages_are_cut_at_a_character(message: str, times: int) -> None:
    encoded = encode_message(message * times)
    assert len(encoded) <= MESSAGE_CHARS_MAX
    decoded = unquote(encoded.decode(), errors="strict")
    whole = (message * times).encode(errors="replace").decode()
    assert decoded == whole or (decoded.endswith("…") and whole.startswith(decoded[:-1]))


def test_trailers_that_would_break_the_connection_are_left_out() -> None:
    good = [
        ("x-modal-warning", "careful%20now"),
        ("grpc-status-details-bin", "AAEC"),
        ("x-empty", ""),
    ]
    bad = [("X-Upper", "v"), ("x y", "v"), (":status", "500"), ("", "v"), ("grpc-status", "0")]
    bad += [("x-v", "a\nb"), ("x-v", "ü"), ("x-big", "v" * TRAILER_CHARS_MAX)]
    encoded, dropped = encode_trailers([*bad, *good])
    assert encoded == [(name.encode(), value.encode()) for name, value in good]
    assert dropped == [name for name, _ in bad]
