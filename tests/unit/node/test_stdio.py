"""A sandbox's streams: output for any number of readers, input taken once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from homeport.kernel.errors import ConflictError, InvalidError
from homeport.node import stdio
from homeport.node.stdio import Spool, Stdin


async def read_all(spool: Spool, offset: int = 0) -> list[tuple[int, bytes]]:
    return [piece async for piece in spool.read(offset)]


@pytest.mark.parametrize("memory", [8, 1024])
def test_any_offset_gives_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(stdio, "SPOOL_MEMORY_BYTES", memory)

    async def scenario() -> None:
        spool = Spool(tmp_path)
        for piece in (b"abc", b"defgh", b"ijklmnop"):
            spool.write(piece)
        spool.finish()
        for offset in range(17):
            pieces = await read_all(spool, offset)
            assert b"".join(data for _, data in pieces) == b"abcdefghijklmnop"[offset:]
            assert all(data for _, data in pieces)
        spool.close()

    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 7, 10, 11, 25])
def test_the_oldest_output_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(stdio, "SPOOL_MEMORY_BYTES", 4)

    async def scenario() -> None:
        spool = Spool(tmp_path, 10)
        whole = bytes(range(100))
        for start in range(0, 100, size):
            spool.write(whole[start : start + size])
        spool.finish()
        pieces = await read_all(spool)
        assert pieces[0][0] == 90
        assert b"".join(data for _, data in pieces) == whole[90:]

    asyncio.run(scenario())


def test_readers_follow(tmp_path: Path) -> None:
    async def scenario() -> None:
        spool = Spool(tmp_path)
        readers = [asyncio.create_task(read_all(spool, offset)) for offset in (0, 2)]
        for piece in (b"ab", b"cd", b"ef"):
            await asyncio.sleep(0)
            spool.write(piece)
        await asyncio.sleep(0)
        spool.finish()
        found = [b"".join(data for _, data in await reader) for reader in readers]
        assert found == [b"abcdef", b"cdef"]

    asyncio.run(scenario())


def test_input_is_taken_once() -> None:
    async def scenario() -> None:
        read, write = os.pipe()
        stdin = Stdin()
        await stdin.write(0, b"abc", eof=False)
        stdin.open(write)
        await stdin.write(0, b"abcd", eof=False)
        await stdin.write(2, b"cdef", eof=True)
        await stdin.write(0, b"", eof=True)
        with pytest.raises(ConflictError):
            await stdin.write(6, b"g", eof=False)
        assert os.read(read, 100) == b"abcdef"
        assert os.read(read, 100) == b""
        os.close(read)

    asyncio.run(scenario())


def test_a_gap_in_the_input_is_refused() -> None:
    async def scenario() -> None:
        with pytest.raises(InvalidError):
            await Stdin().write(3, b"x", eof=False)

    asyncio.run(scenario())


def test_numbered_pieces_are_taken_once() -> None:
    async def scenario() -> None:
        read, write = os.pipe()
        stdin = Stdin()
        stdin.open(write)
        for index, data in ((1, b"a"), (1, b"a"), (2, b"b"), (1, b"a"), (3, b"c")):
            await stdin.write_numbered(index, data, eof=False)
        stdin.close()
        assert os.read(read, 100) == b"abc"
        with pytest.raises(ConflictError):
            await stdin.write_numbered(4, b"d", eof=False)
        os.close(read)

    asyncio.run(scenario())


def test_writers_wait_for_a_program_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdio, "STDIN_BYTES_MAX", 1000)

    async def scenario() -> None:
        read, write = os.pipe()
        stdin = Stdin()
        stdin.open(write)
        block = b"x" * 100_000
        await stdin.write(0, block, eof=False)
        waiting = asyncio.create_task(stdin.write(len(block), block, eof=True))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        found = 0
        while data := await asyncio.to_thread(os.read, read, 65536):
            found += len(data)
        await waiting
        assert found == 2 * len(block)
        os.close(read)

    asyncio.run(scenario())
