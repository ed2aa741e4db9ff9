"""How many templates there are, of what, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from homeport.kernel.clock import Clock
from homeport.kernel.errors import HomeportError
from homeport.link.messages import StartTask
from homeport.node.container_rpc import Upstream
from homeport.node.prepare import Preparer
from homeport.node.runtime.port import ContainerStartError, RuntimeUnavailableError
from homeport.node.templates.checkpoint import Attach, CheckpointError, make_checkpointed
from homeport.node.templates.key import takes_snapshot, template_key
from homeport.node.templates.memory import PressureWatch, is_short, is_tight, memory_mb
from homeport.node.templates.template import MEMORY_MB, Template, make_template

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

COUNT_MAX: Final = 8
"""Waiting containers on a node, of all kinds together. Each takes some 40 MiB."""
OF_ONE_KIND_MAX: Final = 4
IDLE_S: Final = 600.0
"""How long one waits that nothing of its kind has been started for."""
EXPIRY_S: Final = 60.0
"""Between two looks for those that wait for nothing, and at what memory is left."""
BURST_KEPT_S: Final = 60.0
"""How long there are as many of a kind as were lately started at once."""
ONE_SHARE: Final = 0.1
"""Of the machine's memory, for one that waits at its memory snapshot …"""
ALL_SHARE: Final = 0.2
"""… and for all that wait."""
FAILURES_MAX: Final = 3
"""After so many that ended by themselves there are no more of that kind."""
KINDS_MAX: Final = 256
_ERRORS: Final = (ContainerStartError, RuntimeUnavailableError, HomeportError, OSError)


@dataclass(slots=True, eq=False)
class Kind:
    """What is remembered of the tasks with one key."""

    start: StartTask
    """The last one, without its arguments."""
    burst: int = 1
    burst_at: float = -math.inf
    used_at: float = 0.0
    starts: int = 0
    size_mb: int = MEMORY_MB
    """What one takes, as far as that is known."""
    tasks: dict[str, StartTask] = field(default_factory=dict[str, StartTask])
    """Those that run."""
    failures: int = 0
    note: str = ""
    """Why the last one with a memory snapshot was of no use."""
    is_making: bool = False
    idle: list[Template] = field(default_factory=list[Template])

    def started(self, now: float, burst: int) -> None:
        """A task of this kind begins; ``burst`` of them are beginning."""
        if len(self.tasks) <= 1 and now - self.used_at > IDLE_S:
            self.starts = 0
        self.used_at = now
        self.starts += 1
        if burst >= self.burst or now - self.burst_at > BURST_KEPT_S:
            self.burst, self.burst_at = burst, now

    def wanted(self, now: float) -> int:
        """How many should wait."""
        if self.failures >= FAILURES_MAX:
            return 0
        if self.starts <= 1 and not self.start.deployed:
            return 0  # most of what is only run is run once, or is changed before it is run again
        if not self.tasks and now - self.used_at > IDLE_S:
            return 0
        return self.burst if now - self.burst_at <= BURST_KEPT_S else 1


class Templates:
    """The waiting containers of a node.

    A template is made after a task has shown that its kind is wanted, never while one is starting:
    those get the processor. What is least recently used makes way, and all of them do when memory
    runs short.
    """

    def __init__(
        self,
        preparer: Preparer,
        clock: Clock,
        *,
        upstream: Upstream,
        attach: Attach,
        count_max: int = COUNT_MAX,
        short: Callable[[], bool] = is_short,
        tight: Callable[[], bool] = is_tight,
    ) -> None:
        self._preparer = preparer
        self._clock = clock
        self._count_max = count_max
        self._upstream = upstream
        self._attach = attach
        self._short = short
        self._tight = tight
        self._machine_mb = memory_mb()[1]
        self._rehearsal: asyncio.Task[None] | None = None
        self._kinds: OrderedDict[str, Kind] = OrderedDict()
        self._of_task: dict[str, Kind] = {}
        self._starting: set[str] = set()
        self._served: set[str] = set()
        """Tasks that a template was given to."""
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._discards: set[asyncio.Task[None]] = set()
        self._watch = PressureWatch(self.pressed)
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Begin; ends with ``close``."""
        self._watch.start()
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """End all that wait. Idempotent."""
        self._closed = True
        self._watch.stop()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._worker is not None:
            self._wake.set()
            await asyncio.wait([self._worker])  # a start is not interrupted
        if self._rehearsal is not None:
            self._rehearsal.cancel()
            await asyncio.wait([self._rehearsal])
        self.give_back()
        if self._discards:
            await asyncio.wait(self._discards)

    @property
    def count(self) -> int:
        """How many wait."""
        return sum(len(kind.idle) for kind in self._kinds.values())

    # ── tasks ─────────────────────────────────────────────────────────────────────────────────

    def take(self, start: StartTask) -> Template | None:
        """The container for a task that begins, if one of its kind waits. The caller's from now on.

        ``greeted``, ``ready`` and ``ended`` say how the task goes on.
        """
        key = template_key(start)
        if not key or self._closed:
            return None
        kind = self._kinds.get(key)
        like = msgspec.structs.replace(start, arguments=b"")  # they may be large
        if kind is None:
            kind = self._kinds[key] = Kind(like)
        self._kinds.move_to_end(key)
        kind.start = like
        kind.tasks[start.task_id] = start
        self._of_task[start.task_id] = kind
        self._starting.add(start.task_id)
        kind.started(self._clock.monotonic(), len(self._starting & kind.tasks.keys()))
        self._forget_kinds()
        if self.count and self._short():
            self.give_back()
        while kind.idle:
            template = kind.idle.pop(0)
            if not template.is_over:
                self._served.add(start.task_id)
                return template
            self._throw_away(template)
        return None

    def greeted(self, task_id: str) -> None:
        """The task's client is up: there is a processor to spare again."""
        if task_id in self._starting:
            self._starting.discard(task_id)
            self._wake.set()

    def ready(self, task_id: str) -> None:
        """The task came as far as asking for work: its kind is worth a template."""
        if task_id in self._of_task:
            self._starting.discard(task_id)
            if task_id in self._served:
                self._of_task[task_id].failures = 0
            self._wake.set()

    def ended(self, task_id: str) -> None:
        """The task is over."""
        self._starting.discard(task_id)
        self._served.discard(task_id)
        kind = self._of_task.pop(task_id, None)
        if kind is not None:
            kind.tasks.pop(task_id, None)
            kind.used_at = self._clock.monotonic()
            self._wake.set()

    def refused(self, task_id: str, template: Template, reason: str) -> None:
        """The template that the task took could not be used; it starts without."""
        self._served.discard(task_id)
        kind = self._kinds.get(template.key)
        if kind is not None:
            kind.failures += 1
            if takes_snapshot(kind.start):
                kind.note = reason
        self._throw_away(template)

    def discard(self, template: Template) -> None:
        """A template that was taken, by a task that ended before it went on."""
        self._throw_away(template)

    def note(self, task_id: str) -> str:
        """What a task that starts without a template should say of that in its log, if anything."""
        kind = self._of_task.get(task_id)
        if kind is None or not kind.note:
            return ""
        return f"This container starts from nothing, not from its memory snapshot: {kind.note}"

    # ── how many ──────────────────────────────────────────────────────────────────────────────

    def pressed(self) -> None:
        """The kernel says that work stands still for want of memory."""
        if self._tight():
            self.give_back()

    def give_back(self) -> None:
        """Memory runs short: end all that wait. Others follow as kinds are used again."""
        templates = [one for kind in self._kinds.values() for one in kind.idle]
        if templates:
            log.info("waiting containers are given up", count=len(templates))
        for template in templates:
            self._remove(template)

    async def _work(self) -> None:
        while not self._closed:
            await self._wake.wait()
            self._wake.clear()
            try:
                self._expire()
                while not self._starting and (found := self._next()) is not None:
                    await self._make(*found)
            except Exception:
                log.exception("preparing containers ahead failed in the node")

    def _next(self) -> tuple[str, Kind] | None:
        """What to make now: for the most recently used kind first. Makes room for it."""
        if self._closed:
            return None
        now = self._clock.monotonic()
        for key in reversed(self._kinds):
            kind = self._kinds[key]
            if len(kind.idle) >= min(kind.wanted(now), OF_ONE_KIND_MAX) or kind.is_making:
                continue
            if takes_snapshot(kind.start) and not self._can_rehearse(kind):
                continue
            if self._short():
                return None
            if self.count < self._count_max and self._waiting_mb + kind.size_mb <= self._bound_mb:
                return key, kind
            if not kind.idle and (victim := self._older_than(key)) is not None:
                self._remove(victim)
                return key, kind
        return None

    def _older_than(self, key: str) -> Template | None:
        """A template of the kind that was used least recently, if that is longer ago."""
        for other, kind in self._kinds.items():
            if other == key:
                return None
            if kind.idle:
                return kind.idle[0]
        return None

    def _can_rehearse(self, kind: Kind) -> bool:
        """Whether its program can be run now: one at a time, in the name of a task that runs."""
        return bool(kind.tasks) and self._rehearsal is None

    async def _make(self, key: str, kind: Kind) -> None:
        if takes_snapshot(kind.start):
            # It may take as long as the user's program likes; others are made meanwhile.
            kind.is_making = True
            self._rehearsal = asyncio.create_task(self._rehearse(key, kind))
            return
        try:
            template = await make_template(key, kind.start, self._preparer)
        except _ERRORS as error:
            kind.failures += 1
            log.info("no container could be prepared ahead", error=str(error))
            return
        self._keep(kind, template)

    async def _rehearse(self, key: str, kind: Kind) -> None:
        start = next(reversed(kind.tasks.values()))
        try:
            template = await make_checkpointed(
                key,
                start,
                self._preparer,
                self._upstream,
                self._attach,
                lambda: next(reversed(kind.tasks), start.task_id),
            )
            self._keep_if_it_fits(kind, template)
        except CheckpointError as error:
            kind.failures += 1
            kind.note = str(error)
        except _ERRORS as error:
            kind.failures += 1
            log.info("no memory snapshot could be prepared", error=str(error))
        except Exception:
            kind.failures = FAILURES_MAX
            log.exception("preparing a memory snapshot failed in the node")
        finally:
            kind.is_making = False
            self._rehearsal = None
            self._wake.set()

    def _keep_if_it_fits(self, kind: Kind, template: Template) -> None:
        kind.size_mb = template.memory_mb
        bound = int(self._machine_mb * ONE_SHARE) or template.memory_mb
        if template.memory_mb > bound:
            kind.failures = FAILURES_MAX
            kind.note = (
                f"it takes {template.memory_mb} MiB, and at most {bound} MiB are kept waiting"
            )
            self._throw_away(template)
            return
        kind.note = ""
        self._keep(kind, template)
        while self._waiting_mb > self._bound_mb:
            victim = self._older_than(template.key) or template
            self._remove(victim)

    @property
    def _bound_mb(self) -> float:
        """What all that wait may take; without bound if the kernel does not say what there is."""
        return self._machine_mb * ALL_SHARE or math.inf

    @property
    def _waiting_mb(self) -> int:
        return sum(one.memory_mb for kind in self._kinds.values() for one in kind.idle)

    def _keep(self, kind: Kind, template: Template) -> None:
        kind.idle.append(template)
        template.ended.add_done_callback(lambda _: self._has_ended(template))
        self._arm()

    def _has_ended(self, template: Template) -> None:
        """It died, if it still waits here."""
        kind = self._kinds.get(template.key)
        if kind is None or template not in kind.idle:
            return
        kind.failures += 1
        self._remove(template)
        self._wake.set()

    # ── the end of one ────────────────────────────────────────────────────────────────────────

    def _arm(self) -> None:
        if self._expiry is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(EXPIRY_S, self._on_expiry)

    def _on_expiry(self) -> None:
        self._expiry = None
        self._expire()
        if self._short():  # little by little, of which the kernel says nothing
            self.give_back()
        if self.count:
            self._arm()

    def _expire(self) -> None:
        now = self._clock.monotonic()
        for kind in self._kinds.values():
            for template in kind.idle[kind.wanted(now) :]:
                self._remove(template)

    def _forget_kinds(self) -> None:
        """Keep the memory of kinds bounded; those with tasks or templates stay."""
        if len(self._kinds) <= KINDS_MAX:
            return
        for key in [k for k, kind in self._kinds.items() if not kind.tasks and not kind.idle]:
            if len(self._kinds) <= KINDS_MAX:
                return
            del self._kinds[key]

    def _remove(self, template: Template) -> None:
        self._kinds[template.key].idle.remove(template)
        self._throw_away(template)

    def _throw_away(self, template: Template) -> None:
        task = asyncio.create_task(self._discard(template))
        self._discards.add(task)
        task.add_done_callback(self._discards.discard)

    async def _discard(self, template: Template) -> None:
        with contextlib.suppress(OSError):
            await template.discard(self._preparer)
