"""What programs printed: read from any place, more than once, within bounds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from homeport.node.router import output as module
from homeport.node.router.output import GoneError, Output

KIB = 1024


async def collect(output: Output, offset: int = 0) -> bytes:
    pieces = [piece async for piece in output.read(offset)]
    assert all(pieces)
    return b"".join(pieces)


def run(folder: Path, check: Callable[[Output], Awaitable[None]], **options: int) -> None:
    async def main() -> None:
        output = Output(folder, **options)
        try:
            async with asyncio.timeout(60):
                await check(output)
        finally:
            output.close()

    asyncio.run(main())
    assert not [name for name in os.listdir(folder) if not name.startswith(".")]


@pytest.mark.parametrize("size", [0, 1, 255 * KIB, 256 * KIB + 1, 3000 * KIB])
def test_every_reader_gets_all_from_its_offset(tmp_path: Path, size: int) -> None:
    async def check(output: Output) -> None:
        data = os.urandom(size)
        early = [asyncio.create_task(collect(output, offset)) for offset in (0, size // 3, size)]
        for start in range(0, size, 70_000):
            await output.append(data[start : start + 70_000])
        output.end()
        assert [await task for task in early] == [data, data[size // 3 :], b""]
        for offset in (0, size // 2, size):
            assert await collect(output, offset) == data[offset:]
        assert output.size == size

    run(tmp_path, check)


def test_a_reader_waits_for_what_comes(tmp_path: Path) -> None:
    async def check(output: Output) -> None:
        reader = output.read(0)
        await output.append(b"a")
        assert await anext(reader) == b"a"
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        assert not waiting.done()
        await output.append(b"b")
        assert await waiting == b"b"
        output.end()
        assert [piece async for piece in reader] == []

    run(tmp_path, check)


def test_nothing_comes_after_the_end(tmp_path: Path) -> None:
    async def check(output: Output) -> None:
        await output.append(b"before")
        output.end()
        await output.append(b"after")
        assert await collect(output) == b"before"

    run(tmp_path, check)


def test_without_a_reader_the_writer_waits_at_the_bound(tmp_path: Path) -> None:
    async def check(output: Output) -> None:
        for _ in range(4):
            await output.append(bytes(256 * KIB))
        late = asyncio.ensure_future(output.append(b"x"))
        await asyncio.sleep(0.05)
        assert not late.done()
        assert await first(output) == bytes(256 * KIB)  # a reader alone makes no room
        assert not late.done()
        output.end()
        await late

    run(tmp_path, check, kept_bytes_max=1024 * KIB)


async def first(output: Output) -> bytes:
    reader = output.read(0)
    try:
        return await anext(reader)
    finally:
        await reader.aclose()  # type: ignore[attr-defined]


def test_what_all_readers_are_past_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MARGIN_BYTES", 256 * KIB)
    monkeypatch.setattr(module, "_PUNCH_BYTES", 64 * KIB)

    async def check(output: Output) -> None:
        reading = asyncio.create_task(collect(output))
        data = os.urandom(8000 * KIB)
        for start in range(0, len(data), 64 * KIB):
            await output.append(data[start : start + 64 * KIB])
        output.end()
        assert await reading == data
        with pytest.raises(GoneError) as caught:
            await collect(output, 0)
        assert await collect(output, caught.value.start) == data[caught.value.start :]

    run(tmp_path, check, kept_bytes_max=1024 * KIB)


def test_closing_ends_readers(tmp_path: Path) -> None:
    async def check(output: Output) -> None:
        await output.append(bytes(600 * KIB))
        reader = output.read(600 * KIB)
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        output.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        with pytest.raises(GoneError):
            await collect(output, 10)

    run(tmp_path, check)
