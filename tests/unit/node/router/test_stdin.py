"""Standard input that clients write with repetitions, gaps and broken connections."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from homeport.kernel.errors import ConflictError, InvalidError
from homeport.node.router.stdin import BUFFERED_BYTES_MAX, Stdin

MEBI = 1024 * 1024


def run(check: Callable[[Stdin, int], Awaitable[None]], *, terminal: bool = False) -> None:
    async def main() -> None:
        read, write = os.pipe()
        stdin = Stdin(write, terminal=terminal)
        try:
            async with asyncio.timeout(60):
                await check(stdin, read)
        finally:
            stdin.close()
            os.close(read)

    asyncio.run(main())


def drained(fd: int) -> bytes:
    os.set_blocking(fd, False)
    found = b""
    try:
        while data := os.read(fd, MEBI):
            found += data
    except BlockingIOError:
        pass
    return found


def test_what_was_accepted_before_is_dropped() -> None:
    async def check(stdin: Stdin, fd: int) -> None:
        await stdin.write(0, b"hello", False)
        await stdin.write(0, b"hello", False)
        await stdin.write(2, b"llo w", False)
        assert stdin.accepted == 7
        await stdin.write(7, b"orld", True)
        await stdin.write(0, b"hello world", True)
        assert stdin.closed
        assert drained(fd) == b"hello world"

    run(check)


def test_a_gap_is_refused() -> None:
    async def check(stdin: Stdin, fd: int) -> None:
        with pytest.raises(InvalidError, match="gap"):
            await stdin.write(1, b"x", False)

    run(check)


def test_the_end_may_come_at_any_offset_but_nothing_after_it() -> None:
    async def check(stdin: Stdin, fd: int) -> None:
        await stdin.write(0, b"abc", False)
        await stdin.write(0, b"", True)
        await stdin.write(0, b"", True)
        with pytest.raises(ConflictError):
            await stdin.write(3, b"d", False)
        assert drained(fd) == b"abc"

    run(check)


def test_a_terminal_is_told_the_end_by_a_character() -> None:
    async def check(stdin: Stdin, fd: int) -> None:
        await stdin.write(0, b"abc", True)
        assert drained(fd) == b"abc\x04"

    run(check, terminal=True)


def test_writers_wait_for_a_program_that_does_not_read() -> None:
    async def check(stdin: Stdin, fd: int) -> None:
        data = os.urandom(BUFFERED_BYTES_MAX + MEBI)
        await stdin.write(0, data, False)
        late = asyncio.ensure_future(stdin.write(len(data), b"end", True))
        await asyncio.sleep(0.05)
        assert not late.done()
        whole = await asyncio.to_thread(read_all, fd)
        await late
        assert whole == data + b"end"

    run(check)


def read_all(fd: int) -> bytes:
    found = b""
    while data := os.read(fd, MEBI):
        found += data
    return found


def test_a_program_that_closed_its_input_breaks_the_write() -> None:
    async def main() -> None:
        read, write = os.pipe()
        stdin = Stdin(write)
        os.close(read)
        await stdin.write(0, b"lost", False)
        assert stdin.broken
        with pytest.raises(ConflictError):
            await stdin.write(4, b"x", False)

    asyncio.run(main())


def test_a_new_stream_of_writes_ends_the_old_one() -> None:
    async def check(stdin: Stdin, fd: int) -> None:
        begun = asyncio.Event()

        async def stream() -> None:
            with stdin.writing():
                begun.set()
                await asyncio.sleep(60)

        old = asyncio.ensure_future(stream())
        await begun.wait()
        stdin.take_over()
        with pytest.raises(asyncio.CancelledError):
            await old
        with stdin.writing():
            await stdin.write(0, b"mine", True)
        assert drained(fd) == b"mine"

    run(check)
