"""All programs run on demand in the containers of a node."""

from __future__ import annotations

import asyncio
import errno
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

import structlog

from homeport.kernel.errors import ExhaustedError, InvalidError, NotFoundError
from homeport.node.router.execution import Command, Execution
from homeport.node.runtime.port import Container, ContainerEndedError, ExecError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LINGER_S: Final = 60.0
"""So long after a container's end the output of its programs can still be read."""
ENDED_MAX: Final = 2_000
"""Ended programs of one container that can still be asked about …"""
ENDED_BYTES_MAX: Final = 256 * 1024 * 1024
"""… as long as what they printed is not more than that."""
RUNNING_MAX: Final = 4_000
"""Programs at once in one container."""


class RoutedTask(Protocol):
    """A container as the router sees it."""

    @property
    def task_id(self) -> str: ...

    @property
    def is_over(self) -> bool:
        """It has ended, whatever can still be read of it."""
        ...

    async def started(self) -> Container:
        """Its container once it runs. Raises ``NotFoundError`` if it ended before."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """While it is held the container is in use."""
        ...


Find = Callable[[str], RoutedTask | None]


class _TaskExecutions:
    """The programs of one container."""

    def __init__(self) -> None:
        self.known: dict[str, Execution] = {}
        self.starting: dict[str, asyncio.Future[None]] = {}
        self.ended: OrderedDict[str, Execution] = OrderedDict()
        self.ended_bytes = 0
        self.over = False

    def note_end(self, execution: Execution) -> None:
        if execution.execution_id not in self.known:
            return execution.close()
        self.ended[execution.execution_id] = execution
        self.ended_bytes += execution.size
        while len(self.ended) > 1 and (
            len(self.ended) > ENDED_MAX or self.ended_bytes > ENDED_BYTES_MAX
        ):
            self.drop(next(iter(self.ended)))

    def drop(self, execution_id: str) -> None:
        self.starting.pop(execution_id, None)
        execution = self.known.pop(execution_id, None)
        if self.ended.pop(execution_id, None) is not None and execution is not None:
            self.ended_bytes -= execution.size
            execution.close()

    def close(self) -> None:
        for execution in self.known.values():
            execution.close()


Starter = Callable[[Execution, Container, Command, AbstractContextManager[None]], Awaitable[None]]
"""Starts a program other than by executing it; see ``Executions``."""


class Executions:
    """Starts programs and finds them again.

    ``find`` says which containers there are; ``folder`` takes output that does not fit memory;
    ``special`` names programs that the node is itself, by their path.
    """

    def __init__(self, find: Find, folder: Path, special: dict[str, Starter] | None = None) -> None:
        self._find = find
        self._folder = folder
        self._special = special or {}
        self._tasks: dict[str, _TaskExecutions] = {}
        self._watches: set[asyncio.Task[None]] = set()

    def knows(self, task_id: str) -> bool:
        """Whether the container is here, or its programs are still remembered."""
        return task_id in self._tasks or self._find(task_id) is not None

    def find(self, task_id: str) -> RoutedTask | None:
        """The container, also one that has ended but is still known."""
        return self._find(task_id)

    def task(self, task_id: str) -> RoutedTask:
        """The container, running or about to. Raises ``NotFoundError``."""
        task = self._find(task_id)
        if task is None or task.is_over:
            raise NotFoundError(f"container {task_id} is not running here (any more)")
        return task

    async def start(self, task_id: str, execution_id: str, command: Command) -> None:
        """Run ``command`` in a container under the caller's ``execution_id``.

        The same id again is the same program: nothing happens, the outcome is the first one's.
        Raises ``NotFoundError`` without such a container, ``InvalidError`` if the program cannot
        be executed.
        """
        if not execution_id:
            raise InvalidError("an execution needs an id")
        programs = self._tasks.get(task_id)
        if programs is not None and (first := programs.starting.get(execution_id)) is not None:
            return await asyncio.shield(first)
        task = self.task(task_id)
        if programs is None:
            programs = self._tasks[task_id] = _TaskExecutions()
            self._watch(task, programs)
        if len(programs.known) - len(programs.ended) >= RUNNING_MAX:
            raise InvalidError(f"{RUNNING_MAX} programs run in {task_id} already; end some first")
        running = asyncio.ensure_future(self._start(task, programs, execution_id, command))
        programs.starting[execution_id] = running
        running.add_done_callback(lambda _: _seen(running))
        await asyncio.shield(running)

    async def _start(
        self, task: RoutedTask, programs: _TaskExecutions, execution_id: str, command: Command
    ) -> None:
        container = await task.started()
        execution = Execution(execution_id, self._folder)
        start = self._special.get(command.words[0] if command.words else "", Execution.start)
        try:
            await start(execution, container, command, task.active())
        except ExecError as error:
            execution.close()
            loop = asyncio.get_running_loop()
            loop.call_later(LINGER_S, programs.starting.pop, execution_id, None)
            if programs.over or task.is_over or isinstance(error, ContainerEndedError):
                raise NotFoundError(f"container {task.task_id} has ended") from error
            if error.number == errno.EAGAIN:
                raise ExhaustedError(str(error)) from error
            raise InvalidError(str(error)) from error
        programs.known[execution_id] = execution
        execution.on_end(lambda: programs.note_end(execution))

    async def get(self, task_id: str, execution_id: str) -> Execution:
        """A program that was started. Raises ``NotFoundError``."""
        programs = self._tasks.get(task_id)
        if programs is not None:
            starting = programs.starting.get(execution_id)
            if starting is not None and not starting.done():
                await asyncio.shield(starting)
            execution = programs.known.get(execution_id)
            if execution is not None:
                return execution
        self.task(task_id)
        raise NotFoundError(f"there is no program {execution_id} in container {task_id}")

    def has(self, task_id: str, execution_id: str) -> bool:
        """Whether that program was started in that container, or is about to be."""
        programs = self._tasks.get(task_id)
        return programs is not None and (
            execution_id in programs.starting or execution_id in programs.known
        )

    def drop(self, task_id: str, execution_id: str) -> None:
        """Nobody will ask about that program again."""
        programs = self._tasks.get(task_id)
        if programs is not None:
            programs.drop(execution_id)

    def _watch(self, task: RoutedTask, programs: _TaskExecutions) -> None:
        watch = asyncio.create_task(self._until_end(task, programs))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def _until_end(self, task: RoutedTask, programs: _TaskExecutions) -> None:
        try:
            container = await task.started()
            await container.wait()
        except NotFoundError:
            pass
        programs.over = True
        await asyncio.sleep(LINGER_S)
        self._tasks.pop(task.task_id, None)
        programs.close()

    async def stop(self) -> None:
        """Free everything; the containers are ended already."""
        watches: Sequence[asyncio.Task[None]] = [*self._watches]
        for watch in watches:
            watch.cancel()
        if watches:
            await asyncio.wait(watches)
        for programs in self._tasks.values():
            programs.close()
        self._tasks.clear()


def _seen(running: asyncio.Future[None]) -> None:
    """A failure is told to whoever asks; nobody need have waited for it."""
    if not running.cancelled():
        running.exception()
