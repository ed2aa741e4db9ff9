"""A program's end is told when those who read its output have it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from homeport.node.router.execution import Execution


def run(folder: Path, check: Callable[[Execution], Awaitable[None]]) -> None:
    """``check`` with a program that printed something and ended with 3, long ago."""

    async def program() -> int:
        return 3

    async def main() -> None:
        execution = Execution("e-1", folder)
        await execution.stdout.append(b"hello")
        execution.begin(program, lambda: None, 0.0, contextlib.ExitStack())
        await execution.wait()
        try:
            async with asyncio.timeout(60):
                await check(execution)
        finally:
            execution.close()

    asyncio.run(main())


def end(execution: Execution) -> None:
    execution.stdout.end()
    execution.stderr.end()


def test_the_end_is_told_after_output_that_is_asked_for_second(tmp_path: Path) -> None:
    async def check(execution: Execution) -> None:
        end(execution)
        told: list[object] = []

        async def wait() -> None:
            told.append(await execution.wait_read())

        async def read() -> None:
            async for data in execution.stdout.read(0):
                await asyncio.sleep(0)  # it is sent
                told.append(data)

        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            group.create_task(read())
        assert told == [b"hello", 3]

    run(tmp_path, check)


def test_the_end_is_told_though_nobody_reads(tmp_path: Path) -> None:
    async def check(execution: Execution) -> None:
        assert await execution.wait_read() == 3

    run(tmp_path, check)


def test_nobody_is_waited_for_once_all_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(execution: Execution) -> None:
        monkeypatch.setattr("homeport.node.router.execution.READER_S", 1e9)
        end(execution)
        assert [data async for data in execution.stdout.read(0)] == [b"hello"]
        assert await execution.wait_read() == 3

    run(tmp_path, check)


def test_the_end_is_told_though_the_output_has_none(tmp_path: Path) -> None:
    async def check(execution: Execution) -> None:
        reader = execution.stdout.read(0)
        assert await anext(reader) == b"hello"
        waiting = asyncio.ensure_future(anext(reader))
        assert await execution.wait_read() == 3
        assert not waiting.done()
        end(execution)
        await asyncio.wait([waiting])
        assert isinstance(waiting.exception(), StopAsyncIteration)

    run(tmp_path, check)


def test_the_end_is_told_though_a_reader_stopped(tmp_path: Path) -> None:
    async def check(execution: Execution) -> None:
        reader = execution.stdout.read(0)
        assert await anext(reader) == b"hello"  # and it is not asked for more
        assert await execution.wait_read() == 3

    run(tmp_path, check)
