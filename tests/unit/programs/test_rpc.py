"""A program's end is told after its output: some clients print no more once they know it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from modal_proto import api_pb2
from modal_proto import task_command_router_pb2 as router

from homeport.programs.rpc import ProgramsRpc
from homeport.programs.wire import exec_id_of
from homeport.rpc.context import Context
from homeport.tasks.service import TaskService

EXEC_ID = exec_id_of("ta-1", "xp-1")


class Tasks:
    def recent(self, task_id: str) -> Any:
        class Record:
            node_id = "no-1"

        return Record


class Routers:
    """One program that printed "hello" and ended with 3, long ago."""

    async def route(
        self, node_id: str, path: str, body: bytes, timeout_s: float | None = None
    ) -> bytes:
        return router.TaskExecWaitResponse(code=3).SerializeToString()

    async def route_stream(self, node_id: str, path: str, body: bytes) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.01)
        yield router.TaskExecStdioReadResponse(data=b"hello").SerializeToString()


def rpc() -> ProgramsRpc:
    return ProgramsRpc(cast(TaskService, Tasks()), Routers())


CTX = cast(Context, None)


def test_the_end_is_told_after_output_that_is_asked_for_later() -> None:
    programs = rpc()
    told: list[str] = []

    async def wait() -> None:
        request = api_pb2.ContainerExecWaitRequest(exec_id=EXEC_ID, timeout=10)
        answer = await programs.ContainerExecWait(request, CTX)
        assert (answer.completed, answer.exit_code) == (True, 3)
        told.append("end")

    async def read() -> None:
        request = api_pb2.ContainerExecGetOutputRequest(
            exec_id=EXEC_ID, timeout=55, file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT
        )
        async for batch in programs.ContainerExecGetOutput(request, CTX):
            told.extend(item.message for item in batch.items)

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            await asyncio.sleep(0.01)  # the question for the end is here first
            group.create_task(read())

    asyncio.run(both())
    assert told == ["hello", "end"]


@pytest.mark.parametrize("timeout", [0, 10])
def test_the_end_is_told_though_nobody_reads(timeout: float) -> None:
    request = api_pb2.ContainerExecWaitRequest(exec_id=EXEC_ID, timeout=timeout)
    answer = asyncio.run(rpc().ContainerExecWait(request, CTX))
    assert (answer.completed, answer.exit_code) == (True, 3)
