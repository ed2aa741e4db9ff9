"""What passes between a connection and its container."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from homeport.calls.exchange import (
    IN_BYTES_MAX,
    OUT_BYTES_MAX,
    REPLAY_BYTES_MAX,
    Exchange,
)
from homeport.calls.model import Output
from homeport.calls.streams import Chunk
from homeport.kernel.errors import NotFoundError
from homeport.link.messages import Result

ENDED = Output("in-1", 0, Result(1), 0, "ta-1", 0.0, 0.0)


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10):
            await work

    asyncio.run(limited())


async def read(exchange: Exchange, count: int, last_index: int = 0) -> list[Chunk]:
    found: list[Chunk] = []
    messages = exchange.messages(last_index)
    async for chunk in messages:
        found.append(chunk)
        if len(found) == count:
            break
    return found


async def pending(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """``work``, begun and waiting."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0.01)
    assert not task.done()
    return task


def test_messages_come_in_order_from_one_on() -> None:
    async def scenario() -> None:
        exchange = Exchange()
        exchange.push(b"a")
        exchange.push(b"b")
        assert [(c.index, c.data) for c in await read(exchange, 2)] == [(1, b"a"), (2, b"b")]
        assert [c.index for c in await read(exchange, 1, last_index=1)] == [2]

    run(scenario())


def test_container_hears_something_before_the_connection_speaks() -> None:
    async def scenario() -> None:
        exchange = Exchange(b"more will come", 0.01)
        assert [c.data for c in await read(exchange, 1)] == [b"more will come"]

    run(scenario())


def test_sender_waits_until_the_container_has_read() -> None:
    async def scenario() -> None:
        exchange = Exchange()
        exchange.push(b"x" * IN_BYTES_MAX)
        waiting = await pending(exchange.room())
        reading = asyncio.ensure_future(read(exchange, 2))
        await waiting
        exchange.push(b"y")
        assert len(await reading) == 2

    run(scenario())


def test_container_waits_until_the_connection_has_read() -> None:
    async def scenario() -> None:
        exchange = Exchange()
        await exchange.put([Chunk(1, 2, b"x" * OUT_BYTES_MAX)])
        waiting = await pending(exchange.put([Chunk(2, 2, b"y")]))
        assert await exchange.pull() is not None
        await waiting
        chunk = await exchange.pull()
        assert chunk is not None
        assert chunk.data == b"y"

    run(scenario())


def test_repeated_chunks_count_once() -> None:
    async def scenario() -> None:
        exchange = Exchange()
        await exchange.put([Chunk(1, 2, b"a")])
        await exchange.put([Chunk(1, 2, b"a"), Chunk(2, 2, b"b")])
        exchange.finish(ENDED)
        taken = [await exchange.pull() for _ in range(3)]
        assert [chunk.data if chunk else None for chunk in taken] == [b"a", b"b", None]

    run(scenario())


def test_closing_frees_whoever_waits() -> None:
    async def scenario() -> None:
        exchange = Exchange()
        await exchange.put([Chunk(1, 2, b"x" * OUT_BYTES_MAX)])
        writer = await pending(exchange.put([Chunk(2, 2, b"y")]))
        exchange.close()
        await writer
        assert await exchange.pull() is None

    run(scenario())


def test_small_request_can_be_sent_again() -> None:
    async def scenario() -> None:
        exchange = Exchange()
        exchange.push(b"body")
        await read(exchange, 1)
        assert exchange.rewind()
        assert [c.data for c in await read(exchange, 1)] == [b"body"]

    run(scenario())


def test_no_second_try_once_an_answer_began() -> None:
    async def scenario() -> None:
        exchange = Exchange()
        await exchange.put([Chunk(1, 2, b"begun")])
        assert not exchange.rewind()

    run(scenario())


def test_no_second_try_of_what_is_not_kept() -> None:
    async def scenario() -> None:
        exchange = Exchange()
        exchange.push(b"x" * REPLAY_BYTES_MAX)
        exchange.push(b"y")
        await read(exchange, 2)
        exchange.push(b"z")
        await read(exchange, 1, last_index=2)
        assert not exchange.rewind()
        with pytest.raises(NotFoundError):
            await read(exchange, 1)

    run(scenario())
