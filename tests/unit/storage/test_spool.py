"""What is spooled comes back whole, also when it is too long for the memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from homeport.storage.spool import Spool


@pytest.mark.parametrize("count", [0, 1, 50])
def test_all_comes_back(count: int) -> None:
    pieces = [bytes([number]) * 300_000 for number in range(count)]

    async def read() -> bytes:
        spool = Spool(pieces)
        assert spool.size == 300_000 * count
        found = b"".join([chunk async for chunk in spool.chunks()])
        spool.close()
        return found

    assert asyncio.run(read()) == b"".join(pieces)


def test_an_error_of_the_source_is_the_callers() -> None:
    def failing() -> Iterator[bytes]:
        yield b"one"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        Spool(failing())
