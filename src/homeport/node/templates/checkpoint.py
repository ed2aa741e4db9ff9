"""A waiting container whose program has got as far as its memory snapshot.

It is started from the arguments of a task that runs already, with the client's own switch for
snapshots on. The client then imports the user's code, runs ``@enter(snap=True)``, says
``ContainerCheckpoint``, closes its connections, and waits for a file that says which task it is; what
it does then, ``@enter(snap=False)`` first, is what it does after a restored snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from homeport.kernel import ids
from homeport.kernel.errors import ConflictError, HomeportError
from homeport.link.messages import OutputItem, Result, StartTask
from homeport.node import wire
from homeport.node.container_rpc import ContainerDispatcher, Upstream
from homeport.node.prepare import CONTROL_DIR, Prepared, Preparer, environment
from homeport.node.runtime.port import (
    Container,
    ContainerStartError,
    RuntimeUnavailableError,
)
from homeport.node.sockets import serve_unix
from homeport.node.templates.template import MEMORY_MB, PREFIX, Template
from homeport.node.tunnels import TunnelPort
from homeport.node.work import Grant
from homeport.transport.dispatch import UNAVAILABLE, StatusError
from homeport.transport.grpc_server import GrpcServer

_RESTORE: Final = "restore.json"
_PIPE_BYTES: Final = 1024 * 1024
"""What it may print before somebody reads it."""
_TAIL_BYTES: Final = 4096
_CLOSE_S: Final = 5.0
_CLOSE_PAUSE_S: Final = 0.01

Attach = Callable[[Container], Awaitable[Callable[[], None]]]
"""Gives a container its way to the server's blobs; the result takes it away again."""


class CheckpointError(Exception):
    """The program did not get to its snapshot; the message says why."""


class Rehearsal:
    """The container's end of the work loop (``ContainerPort``) before there is a task.

    What the program asks of Homeport meanwhile is asked in the name of a running task of the same
    function: of the one that ``asks_as`` names at that moment.
    """

    def __init__(self, start: StartTask, prepared: Prepared, asks_as: Callable[[], str]) -> None:
        self._start = start
        self._asks_as = asks_as
        self._volumes = prepared.volumes
        self.reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the program is at its snapshot, or has said that it will not get there."""

    @property
    def task_id(self) -> str:
        return self._asks_as()

    @property
    def untrusted(self) -> bool:
        return self._start.untrusted

    def greeted(self) -> None:
        return

    def checkpoint(self) -> None:
        if not self.reached.done():
            self.reached.set_result(None)

    def init_failed(self, result: Result) -> None:
        self._fail(result.exception or "the program failed before its snapshot")

    async def get_inputs(self, concurrency: int) -> Grant:
        del concurrency
        self._fail("its client asked for work instead of taking a snapshot")
        raise StatusError(UNAVAILABLE, "there is no work yet")

    async def heartbeat(self, hold_s: float) -> list[str]:
        await asyncio.sleep(hold_s)
        return []

    def put_outputs(self, items: list[OutputItem]) -> None:
        return

    def concurrency(self, target: int, maximum: int) -> int:
        del maximum
        return max(1, target)

    def stop_fetching(self) -> None:
        return

    def server_ready(self) -> None:
        return

    def has_volume(self, volume_id: str) -> bool:
        return self._volumes.has(volume_id)

    async def commit_volume(self, volume_id: str) -> None:
        await self._volumes.commit(volume_id)

    async def reload_volume(self, volume_id: str) -> None:
        await self._volumes.reload(volume_id)

    async def open_tunnels(self, ports: Sequence[TunnelPort], key: str) -> tuple[str, list[int]]:
        raise ConflictError("there are no tunnels before a memory snapshot is taken")

    def close_tunnel(self, number: int) -> bool:
        return False

    def owns_call(self, call_id: str) -> bool:
        return False

    def _fail(self, reason: str) -> None:
        if not self.reached.done():
            self.reached.set_exception(CheckpointError(reason))


class CheckpointedTemplate(Template):
    """See the module. ``serving`` is what answers it until it has a task."""

    skips_hello = True

    def __init__(
        self,
        key: str,
        prepared: Prepared,
        container: Container,
        pipes: tuple[int, int, int],
        serving: contextlib.AsyncExitStack,
    ) -> None:
        super().__init__(key, prepared, container, pipes)
        self._serving = serving

    async def hand_over(self, preparer: Preparer, start: StartTask) -> Prepared:
        del preparer
        try:
            await self.prepared.volumes.refresh()
        except HomeportError as error:
            raise ContainerStartError(
                f"its volumes have changed and it uses them ({error.message})"
            ) from error
        await self._serving.aclose()
        with contextlib.suppress(RuntimeUnavailableError):
            await self.container.thaw()
        if self.is_over:
            raise ContainerStartError("the container that waited has ended")
        self.container.adopt(environment(start))
        return replace(self.prepared, start=start)

    def go(self, start: StartTask) -> tuple[int, int]:
        words = {"task_id": start.task_id, "function_id": start.function_id}
        run = self.prepared.folder / "run"
        draft = run / f".{_RESTORE}"
        draft.write_text(json.dumps(words))
        draft.rename(run / _RESTORE)
        return self._give_pipes()

    async def remove(self) -> None:
        await self._serving.aclose()
        await super().remove()

    def last_words(self) -> str:
        """The last line that it wrote to stderr."""
        data = b""
        if self.stderr_fd >= 0:
            os.set_blocking(self.stderr_fd, False)
            with contextlib.suppress(BlockingIOError):
                while part := os.read(self.stderr_fd, _PIPE_BYTES):
                    data = (data + part)[-_TAIL_BYTES:]
        lines = data.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


async def make_checkpointed(
    key: str,
    start: StartTask,
    preparer: Preparer,
    upstream: Upstream,
    attach: Attach,
    asks_as: Callable[[], str],
) -> CheckpointedTemplate:
    """A container like that of ``start``, at its memory snapshot.

    ``asks_as`` names a task like it that runs. Raises as the preparer and the runtime do, and
    ``CheckpointError`` if the program does not get there within its startup timeout.
    """
    placeholder = ids.new(ids.TASK)
    own = msgspec.structs.replace(
        start,
        task_id=ids.new(PREFIX),
        arguments=wire.arguments_of(start.arguments, placeholder),
        env={
            **start.env,
            "MODAL_ENABLE_SNAP_RESTORE": "1",
            "MODAL_RESTORE_STATE_PATH": f"{CONTROL_DIR}/{_RESTORE}",
        },
    )
    prepared = await preparer.prepare(own)
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(preparer.discard, prepared)
        serving = await undo.enter_async_context(contextlib.AsyncExitStack())
        rehearsal = Rehearsal(start, prepared, asks_as)
        server = GrpcServer(ContainerDispatcher(rehearsal, upstream))
        serving.push_async_callback(server.stop, 0.0)
        listener = await serve_unix(server.protocol_factory, prepared.socket_path)
        serving.callback(prepared.socket_path.unlink, missing_ok=True)
        serving.callback(listener.close)
        container, pipes = await _start(prepared, own, placeholder)
        template = CheckpointedTemplate(key, prepared, container, pipes, serving)
        undo.push_async_callback(template.remove)
        prepared.volumes.attach(container)
        serving.callback(await attach(container))
        await _arrival(template, rehearsal, start.startup_timeout_s)
        await _hold(template, server)
        undo.pop_all()
    return template


async def _start(
    prepared: Prepared, own: StartTask, placeholder: str
) -> tuple[Container, tuple[int, int, int]]:
    reads: list[int] = []
    writes: list[int] = []
    try:
        for _ in range(2):
            read, write = os.pipe()
            reads.append(read)
            writes.append(write)
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        spec = prepared.spec(own, *writes)
        spec = replace(spec, env={**spec.env, "MODAL_TASK_ID": placeholder})
        container = await _whole(prepared.runtime.start(spec))
    except BaseException:
        for fd in reads:
            os.close(fd)
        raise
    finally:
        for fd in writes:
            os.close(fd)
    return container, (-1, reads[0], reads[1])


async def _arrival(template: CheckpointedTemplate, rehearsal: Rehearsal, timeout_s: float) -> None:
    """Until the program is at its snapshot. Raises ``CheckpointError`` if it will not be."""
    reached = rehearsal.reached
    waits: list[asyncio.Future[Any]] = [reached, template.ended]
    done, _ = await asyncio.wait(
        waits, timeout=timeout_s or None, return_when=asyncio.FIRST_COMPLETED
    )
    if reached in done:
        reached.result()
    elif done:
        code = template.ended.result().returncode
        raise CheckpointError(f"its program ended with {code}: {template.last_words()}")
    else:
        raise CheckpointError(f"its program was not there within {timeout_s:g} s")


async def _hold(template: CheckpointedTemplate, server: GrpcServer) -> None:
    """Stop it where it is, when it has closed its connections: it would look for its task's file a
    hundred times a second.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            while server.connections:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(_CLOSE_PAUSE_S)
    with contextlib.suppress(RuntimeUnavailableError):  # then it goes on looking
        await template.container.freeze()
    template.memory_mb = max(MEMORY_MB, template.container.memory_bytes() // 1024**2)


async def _whole(start: Coroutine[Any, Any, Container]) -> Container:
    """A start is not left half done by who does not want it any more."""
    starting = asyncio.ensure_future(start)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        if starting.exception() is None:
            await starting.result().remove()
        raise
