"""Data channels: order, memory, and readers that come late, again or never."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from homeport.calls import streams as module
from homeport.calls.streams import Chunk, DataStreams
from homeport.kernel.errors import NotFoundError

CALL = "fc-1"


def chunks(first: int, last: int, size: int = 1) -> list[Chunk]:
    return [Chunk(index, 1, bytes(size)) for index in range(first, last + 1)]


async def read(streams: DataStreams, count: int, after: int = 0) -> list[int]:
    """The indexes of the next ``count`` chunks, as a reader that takes each of them in."""
    seen: list[int] = []
    reader = streams.follow(CALL, after)
    while len(seen) < count:
        seen.append((await anext(reader)).index)
    # Only the next pull says that the last one was taken.
    pull = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    pull.cancel()
    return seen


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(main())


def test_a_reader_that_comes_after_the_result_was_taken_gets_everything() -> None:
    async def scenario() -> None:
        streams = DataStreams()
        await streams.put(CALL, chunks(1, 4))
        streams.finish(CALL)
        assert await read(streams, 4) == [1, 2, 3, 4]

    run(scenario())


def test_a_reader_before_the_writer_waits() -> None:
    async def scenario() -> None:
        streams = DataStreams()
        reading = asyncio.create_task(read(streams, 3))
        await asyncio.sleep(0)
        await streams.put(CALL, chunks(2, 3))
        await streams.put(CALL, chunks(1, 1))
        assert await reading == [1, 2, 3]

    run(scenario())


def test_a_failure_waits_until_a_reader_has_what_was_yielded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "READ_OUT_MAX_S", 60.0)

    async def scenario() -> None:
        streams = DataStreams()
        await streams.put(CALL, chunks(1, 3))
        waiting = asyncio.create_task(streams.read_out(CALL))
        assert await read(streams, 2) == [1, 2]
        assert not waiting.done()
        assert await read(streams, 1, after=2) == [3]
        await waiting
        await streams.read_out("fc-without-values")

    run(scenario())


def test_a_failure_does_not_come_together_with_what_was_yielded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        streams = DataStreams()
        await streams.put(CALL, chunks(1, 3))
        assert await read(streams, 3) == [1, 2, 3]
        monkeypatch.setattr(module, "LINGER_S", 60.0)
        waiting = asyncio.create_task(streams.read_out(CALL))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        monkeypatch.setattr(module, "LINGER_S", 0.0)
        await streams.read_out(CALL)

    run(scenario())


def test_a_failure_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_OUT_MAX_S", 0.01)

    async def scenario() -> None:
        streams = DataStreams()
        await streams.put(CALL, chunks(1, 3))
        await streams.read_out(CALL)

    run(scenario())


@pytest.mark.parametrize("by", ["reading", "forgetting"])
def test_a_writer_waits_while_the_channel_is_full(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr(module, "CHANNEL_BYTES_MAX", 10_000)
    monkeypatch.setattr(module, "TAIL_BYTES", 1000)

    async def scenario() -> None:
        streams = DataStreams()
        await streams.put(CALL, chunks(1, 50))
        writing = asyncio.create_task(streams.put(CALL, chunks(51, 52)))
        await asyncio.sleep(0)
        assert not writing.done()
        if by == "reading":
            assert await read(streams, 52) == list(range(1, 53))
        else:
            streams.drop(CALL)
        await writing

    run(scenario())


def test_a_reader_whose_connection_broke_goes_on_or_learns_that_it_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TAIL_BYTES", 3000)

    async def scenario() -> None:
        streams = DataStreams()
        await streams.put(CALL, chunks(1, 50))
        assert await read(streams, 50) == list(range(1, 51))
        assert await read(streams, 1, after=2) == [3]
        streams.finish(CALL)
        assert await read(streams, 1, after=48) == [49]
        with pytest.raises(NotFoundError, match="Value 3 "):
            await read(streams, 1, after=2)

    run(scenario())


def test_an_attempt_that_runs_again_replaces_its_values() -> None:
    async def scenario() -> None:
        streams = DataStreams()
        await streams.put(CALL, chunks(1, 3))
        assert await read(streams, 2) == [1, 2]
        await streams.put(CALL, chunks(1, 4))
        assert await read(streams, 2, after=2) == [3, 4]

    run(scenario())
