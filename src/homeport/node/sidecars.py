"""Sidecar containers: further containers of a sandbox, which end with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from homeport.kernel.clock import Clock
from homeport.kernel.errors import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from homeport.link.messages import (
    LogEntry,
    Message,
    SandboxStarted,
    StartSandbox,
    TaskExited,
)
from homeport.node.logs import SYSTEM
from homeport.node.peers import connect, is_gone
from homeport.node.prepare import Preparer
from homeport.node.runtime.port import Container
from homeport.node.sandbox import Exec, Reporter, Sandbox

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAIN: Final = "main"
"""What a sandbox's own container is called among them."""
RUNNING_MAX: Final = 16
"""Sidecars of one sandbox at once."""
KNOWN_MAX: Final = 256
"""Sidecars of one sandbox, with those that have ended."""
_END_S: Final = 10.0


class Sidecar(Sandbox):
    """A container beside that of the sandbox ``owner``, under ``name``."""

    def __init__(
        self,
        start: StartSandbox,
        name: str,
        owner: Sandbox,
        link: Reporter,
        preparer: Preparer,
        clock: Clock,
        execute: Exec | None,
        join: Callable[[Sidecar, Container], Awaitable[None]],
    ) -> None:
        self._join = join
        self._reports = _Reports(link, owner.task_id, name)
        super().__init__(start, self._reports, preparer, clock, execute)
        self.name = name
        self.owner = owner
        self.terminated = False
        """Whether somebody ended it."""

    async def _launched(self, container: Container) -> None:
        await self._join(self, container)

    @property
    def account_id(self) -> str:
        return self.owner.task_id

    @property
    def exited(self) -> TaskExited | None:
        """How it ended; ``None`` while it runs."""
        return self._reports.exited.result() if self._reports.exited.done() else None

    async def until_exit(self, timeout_s: float) -> TaskExited | None:
        """How it ended, as soon as it has; ``None`` after ``timeout_s``."""
        if timeout_s > 0:
            await asyncio.wait([self._reports.exited], timeout=timeout_s)
        return self.exited

    def terminate(self) -> None:
        """End it because somebody wants that."""
        if self.exited is None:
            self.terminated = True
            self.kill("")


class _Reports:
    """Takes a sidecar's reports: the server hears of its sandbox only.

    What it prints is told as the platform's words about the sandbox: its output is not the
    sandbox's own.
    """

    def __init__(self, link: Reporter, task_id: str, name: str) -> None:
        self._link = link
        self._task_id = task_id
        self._name = name
        self.exited: asyncio.Future[TaskExited] = asyncio.get_running_loop().create_future()

    @property
    def is_congested(self) -> bool:
        return self._link.is_congested

    async def uncongested(self) -> None:
        await self._link.uncongested()

    def send_sure(self, message: SandboxStarted | TaskExited) -> None:
        if isinstance(message, TaskExited) and not self.exited.done():
            self.exited.set_result(message)

    async def taken(self, seq: int) -> bool:
        return True

    def send_kept(self, message: Message) -> None:
        return

    def logs(self, task_id: str, entries: list[LogEntry]) -> None:
        told = [LogEntry(SYSTEM, entry.time_ns, self._prefixed(entry.data)) for entry in entries]
        self._link.logs(self._task_id, told)

    def _prefixed(self, text: str) -> str:
        return "".join(f"[{self._name}] {line}" for line in text.splitlines(keepends=True))


def check_memory(sidecars: Sidecars, task_id: str) -> None:
    """Raise ``InvalidError`` for a sandbox of which no memory snapshot can be taken."""
    if sidecars.of(task_id, ended_too=False):
        raise InvalidError(
            "There is no memory snapshot of a sandbox while it has sidecars: end them first"
        )


class Sidecars:
    """The sidecars of all sandboxes of a node."""

    def __init__(self, link: Reporter, preparer: Preparer, clock: Clock) -> None:
        self._link = link
        self._preparer = preparer
        self._clock = clock
        self._by_id: dict[str, Sidecar] = {}
        self._of: dict[str, list[Sidecar]] = defaultdict(list)
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._links: Counter[str] = Counter()

    def find(self, container_id: str) -> Sidecar | None:
        """By its id, running or ended, as long as its sandbox runs."""
        return self._by_id.get(container_id)

    def of(self, task_id: str, *, ended_too: bool) -> list[Sidecar]:
        """Those of a sandbox, in the order of their creation."""
        return [each for each in self._of.get(task_id, []) if ended_too or each.exited is None]

    def named(self, task_id: str, name: str, *, ended_too: bool) -> Sidecar:
        """The newest of that name. Raises ``NotFoundError``."""
        for each in reversed(self.of(task_id, ended_too=ended_too)):
            if each.name == name:
                return each
        raise NotFoundError(f"The sandbox has no sidecar container named {name!r}")

    async def start(
        self, owner: Sandbox, name: str, start: StartSandbox, execute: Exec | None
    ) -> None:
        """Start one; the same id once. When it returns it runs, or its end says why it could not.

        Raises ``AlreadyExistsError`` if a running one has the name, ``InvalidError``,
        ``NotFoundError`` if the sandbox has ended.
        """
        if start.task_id in self._by_id:
            return
        if owner.is_over:
            raise NotFoundError(f"the sandbox {owner.start.sandbox_id} is not running")
        running = self.of(owner.task_id, ended_too=False)
        if any(each.name == name for each in running):
            raise AlreadyExistsError(f"The sandbox has a sidecar container named {name!r} already")
        if len(running) >= RUNNING_MAX or len(self._of.get(owner.task_id, [])) >= KNOWN_MAX:
            raise InvalidError(
                f"a sandbox has at most {RUNNING_MAX} sidecar containers at once, and {KNOWN_MAX} "
                "in its life"
            )
        sidecar = Sidecar(
            start, name, owner, self._link, self._preparer, self._clock, execute, self._join
        )
        self._by_id[sidecar.task_id] = sidecar
        self._of[owner.task_id].append(sidecar)
        run = asyncio.create_task(sidecar.run(), name=sidecar.task_id)
        self._runs[sidecar.task_id] = run
        run.add_done_callback(lambda _: self._runs.pop(sidecar.task_id, None))
        with contextlib.suppress(NotFoundError):
            await sidecar.started()

    async def _join(self, sidecar: Sidecar, container: Container) -> None:
        """Connect a new container with the others of its sandbox, each by its name."""
        owner = sidecar.owner
        others = [(MAIN, owner.container)]
        for other in self.of(owner.task_id, ended_too=False):
            with contextlib.suppress(NotFoundError):
                if other is not sidecar:
                    others.append((other.name, other.container))
        for name, other in others:
            self._links[owner.task_id] += 1
            number = self._links[owner.task_id]
            try:
                await connect(container, sidecar.name, other, name, number)
            except OSError as error:
                if is_gone(container):
                    return
                raise UnavailableError(
                    f"the sidecar cannot be connected with {name}: {error.strerror}"
                ) from error

    async def end(self, task_id: str) -> None:
        """The sandbox has ended: so do they, and nothing is known of them any more."""
        mine = self._of.pop(task_id, [])
        self._links.pop(task_id, None)
        runs = [run for each in mine if (run := self._runs.get(each.task_id)) is not None]
        for each in mine:
            each.kill("the sandbox has ended")
        if runs:
            _, late = await asyncio.wait(runs, timeout=_END_S)
            for run in late:
                run.cancel()
            if late:
                await asyncio.wait(late)
        for each in mine:
            self._by_id.pop(each.task_id, None)
            each.forget()
