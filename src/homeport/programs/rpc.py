"""RPC handlers of programs and files in containers for clients before the command router.

They are what the router does, by way of the link to the node. Their ids say which container a
program is in, so the server keeps nothing about them but how far a program's input has come.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, Protocol

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from modal_proto import api_pb2
from modal_proto import task_command_router_pb2 as router

from homeport.kernel import ids
from homeport.kernel.errors import HomeportError, NotFoundError
from homeport.kernel.numbers import wait_s
from homeport.programs import older_wire, wire
from homeport.rpc.context import Context
from homeport.tasks.service import TaskService

_PREFIX: Final = "/modal.task_command_router.TaskCommandRouter/"
_HOLD_S: Final = 60.0
"""No answer is held longer, whatever the client asks."""
_STATES_MAX: Final = 10_000
_READ_S: Final = 1.0
"""A program's end is told so much later at most, if its output is still being read: the command
line of some clients stops printing at the end."""
_READER_S: Final = 0.3
"""So long after the question for a program's end a first reader may come: a client asks for the end
and the output at once, and which request comes first is chance."""
_PROGRAM: Final = "xp"


class Routers(Protocol):
    """The nodes' command routers, reached over their links."""

    async def route(
        self, node_id: str, path: str, body: bytes, timeout_s: float | None = None
    ) -> bytes:
        """One answer. Raises ``HomeportError``."""
        ...

    def route_stream(self, node_id: str, path: str, body: bytes) -> AsyncIterator[bytes]:
        """A streaming one's messages. Raises ``HomeportError``."""
        ...


class _State:
    """How far a program's standard input has come, and who reads its output."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.index = 0
        self.offset = -1
        self._readers = 0
        self._met = asyncio.Event()
        self._read = asyncio.Event()
        self._read.set()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncGenerator[None]:
        """Somebody reads for the time of the block."""
        self._readers += 1
        self._met.set()
        self._read.clear()
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._read.set()

    async def read(self, asked: float) -> None:
        """Until somebody has read and nobody does any more; not for long.

        The question for the program's end came at ``asked``, by the loop's clock.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(asked + _READER_S):
                await self._met.wait()
        self._met.set()  # who did not come by now reads nothing: later questions need not wait
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_S):
                await self._read.wait()


class ProgramsRpc:
    """``ContainerExec*`` and ``ContainerFilesystemExec*``."""

    def __init__(self, tasks: TaskService, routers: Routers) -> None:
        self._tasks = tasks
        self._routers = routers
        self._states: OrderedDict[str, _State] = OrderedDict()

    # ── programs ────────────────────────────────────────────────────────────────────────────

    async def ContainerExec(
        self, request: api_pb2.ContainerExecRequest, ctx: Context
    ) -> api_pb2.ContainerExecResponse:
        program_id = ctx.new_id(_PROGRAM)
        start = wire.start_request(request, program_id)
        await self._call(request.task_id, "TaskExecStart", start)
        return api_pb2.ContainerExecResponse(exec_id=wire.exec_id_of(request.task_id, program_id))

    async def ContainerExecGetOutput(
        self, request: api_pb2.ContainerExecGetOutputRequest, ctx: Context
    ) -> AsyncIterator[api_pb2.RuntimeOutputBatch]:
        """A batch's index is where its last byte ends, so a reader goes on where it was."""
        task_id, program_id, _ = wire.parse_exec_id(request.exec_id)
        is_error = request.file_descriptor == api_pb2.FILE_DESCRIPTOR_STDERR
        offset = request.last_batch_index
        until = asyncio.get_running_loop().time() + wait_s(request.timeout or _HOLD_S, _HOLD_S)
        pieces = self._output(task_id, program_id, is_error, offset)
        async with aclosing(pieces), self._state(request.exec_id).reading():
            while True:
                try:
                    async with asyncio.timeout_at(until):
                        data = await anext(pieces, None)
                        code = None
                        if data is None:
                            code = await self._exit_code(task_id, program_id)
                except TimeoutError:
                    return
                if data is None:
                    yield api_pb2.RuntimeOutputBatch(batch_index=offset, exit_code=code)
                    return
                offset += len(data)
                item = api_pb2.RuntimeOutputMessage(
                    file_descriptor=request.file_descriptor, message_bytes=data
                )
                if not request.get_raw_bytes:
                    item.message = data.decode(errors="replace")
                yield api_pb2.RuntimeOutputBatch(items=[item], batch_index=offset)

    async def ContainerExecWait(
        self, request: api_pb2.ContainerExecWaitRequest, ctx: Context
    ) -> api_pb2.ContainerExecWaitResponse:
        task_id, program_id, _ = wire.parse_exec_id(request.exec_id)
        asked = asyncio.get_running_loop().time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s(request.timeout, _HOLD_S) or 0.05):
                code = await self._exit_code(task_id, program_id)
                if request.timeout:  # else it only asks how the program stands
                    await self._state(request.exec_id).read(asked)
                return api_pb2.ContainerExecWaitResponse(completed=True, exit_code=code)
        return api_pb2.ContainerExecWaitResponse(completed=False)

    async def ContainerExecPutInput(
        self, request: api_pb2.ContainerExecPutInputRequest, ctx: Context
    ) -> Empty:
        task_id, program_id, _ = wire.parse_exec_id(request.exec_id)
        item = request.input
        state = self._state(request.exec_id)
        async with state.turn:
            if item.message_index and item.message_index <= state.index:
                return Empty()
            if item.message or item.eof:  # nothing at all says only that the client is there
                await self._write(task_id, program_id, state, item.message, item.eof)
            state.index = max(state.index, item.message_index)
        return Empty()

    async def _write(
        self, task_id: str, program_id: str, state: _State, data: bytes, eof: bool
    ) -> None:
        if state.offset < 0:
            status = router.TaskExecStdinStatusRequest(task_id=task_id, exec_id=program_id)
            body = await self._call(task_id, "TaskExecStdinStatus", status)
            state.offset = router.TaskExecStdinStatusResponse.FromString(body).num_bytes_written
        write = router.TaskExecStdinWriteRequest(
            task_id=task_id, exec_id=program_id, offset=state.offset, data=data, eof=eof
        )
        await self._call(task_id, "TaskExecStdinWrite", write)
        state.offset += len(data)

    def _state(self, exec_id: str) -> _State:
        state = self._states.setdefault(exec_id, _State())
        self._states.move_to_end(exec_id)
        if len(self._states) > _STATES_MAX:
            self._states.popitem(last=False)
        return state

    # ── files ───────────────────────────────────────────────────────────────────────────────

    async def ContainerFilesystemExec(
        self, request: api_pb2.ContainerFilesystemExecRequest, ctx: Context
    ) -> api_pb2.ContainerFilesystemExecResponse:
        task_id = request.task_id
        command, data = wire.file_command(request)
        program_id = ctx.new_id(_PROGRAM)
        start = wire.file_request(task_id, program_id, command)
        await self._call(task_id, "TaskExecStart", start)
        kind = wire.WATCH if "Watch" in command else ""
        if not kind:
            write = router.TaskExecStdinWriteRequest(
                task_id=task_id, exec_id=program_id, offset=0, data=data, eof=True
            )
            with contextlib.suppress(HomeportError):  # it failed: its output says why
                await self._call(task_id, "TaskExecStdinWrite", write)
        response = api_pb2.ContainerFilesystemExecResponse(
            exec_id=wire.exec_id_of(task_id, program_id, kind)
        )
        if "HandleOpen" in command:
            response.file_descriptor = await self._opened(task_id, program_id)
        return response

    async def _opened(self, task_id: str, program_id: str) -> str:
        """The number of the opened file; one of none if it could not be (its output says why)."""
        if await self._exit_code(task_id, program_id):
            return ids.new(_PROGRAM)
        return (await self._all(task_id, program_id, is_error=False)).decode()

    async def ContainerFilesystemExecGetOutput(
        self, request: Message, ctx: Context
    ) -> AsyncIterator[Message]:
        exec_id: str = getattr(request, "exec_id", "")
        task_id, program_id, kind = wire.parse_exec_id(exec_id)
        index = 0
        pieces = self._output(task_id, program_id, False, 0)
        lines = b""
        async with aclosing(pieces):
            async for data in pieces:
                index += 1
                if kind == wire.WATCH:  # events end with an empty line here
                    lines += data
                    whole, _, lines = lines.rpartition(b"\n")
                    data = b"".join(line + b"\n\n" for line in whole.splitlines())
                if data:
                    yield older_wire.message(output=[data], batch_index=index)
        if await self._exit_code(task_id, program_id):
            said = await self._all(task_id, program_id, is_error=True)
            number, text = wire.system_error(said)
            yield older_wire.message(error={"error_code": number, "error_message": text})
        yield older_wire.message(batch_index=index + 1, eof=True)

    # ── the router ──────────────────────────────────────────────────────────────────────────

    def _node(self, task_id: str) -> str:
        record = self._tasks.recent(task_id)
        if record is None:
            raise NotFoundError(f"Container {task_id!r} is not running (any more)")
        return record.node_id

    async def _call(self, task_id: str, name: str, request: Message) -> bytes:
        body = request.SerializeToString()
        return await self._routers.route(self._node(task_id), _PREFIX + name, body)

    async def _exit_code(self, task_id: str, program_id: str) -> int:
        request = router.TaskExecWaitRequest(task_id=task_id, exec_id=program_id)
        body = await self._call(task_id, "TaskExecWait", request)
        return wire.exit_code(router.TaskExecWaitResponse.FromString(body))

    async def _output(
        self, task_id: str, program_id: str, is_error: bool, offset: int
    ) -> AsyncGenerator[bytes]:
        request = router.TaskExecStdioReadRequest(
            task_id=task_id,
            exec_id=program_id,
            offset=offset,
            file_descriptor=router.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
            if is_error
            else router.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDOUT,
        )
        path = _PREFIX + "TaskExecStdioRead"
        node_id = self._node(task_id)
        stream = self._routers.route_stream(node_id, path, request.SerializeToString())
        async for body in stream:
            yield router.TaskExecStdioReadResponse.FromString(body).data

    async def _all(self, task_id: str, program_id: str, *, is_error: bool) -> bytes:
        return b"".join([data async for data in self._output(task_id, program_id, is_error, 0)])
