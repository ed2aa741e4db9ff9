"""How much of an output is told to a client at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

LINES_COST_MAX: Final = 32 * 1024 * 1024
"""Clients that look for lines copy the rest of a piece for each line in it, and all of an
unfinished line for each further piece: pieces of short lines have to be small, and those of long
lines large. This is the most that lines times bytes may be."""
PIECE_BYTES_MIN: Final = 16 * 1024
PIECE_BYTES_MAX: Final = 1024 * 1024


def pieces(data: bytes) -> Iterator[bytes]:
    """``data``, which may have lines, in parts that are cheap to look through."""
    start = 0
    while start < len(data):
        size = len(data) - start
        while (
            size > PIECE_BYTES_MIN
            and data.count(b"\n", start, start + size) * size > LINES_COST_MAX
        ):
            size = max(PIECE_BYTES_MIN, size // 2)
        yield data[start : start + size]
        start += size
