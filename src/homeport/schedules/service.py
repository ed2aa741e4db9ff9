"""Use cases of schedules: follow what is deployed, run what is due."""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog

from homeport.apps.model import App, AppState
from homeport.calls.model import Call
from homeport.functions.model import FunctionRecord
from homeport.kernel.wall import WallClock
from homeport.schedules.model import Due, Entry, Schedule
from homeport.schedules.store import ScheduleStore
from homeport.storage.database import Step

log = structlog.get_logger(__name__)

RUNS_KEPT: Final = 20
"""Runs of a schedule whose results are kept, and that may be unfinished at once: a function that
is slower than its schedule does not pile up work without end."""
_RETRY_S: Final = 5.0
"""A run that could not be recorded (the disk is full, say) is tried again after it."""


class Apps(Protocol):
    """What is asked of the feature of apps."""

    def find(self, app_id: str) -> App | None: ...

    def all_live(self) -> Iterable[App]: ...


class Functions(Protocol):
    """What is asked of the feature of functions."""

    def find(self, function_id: str) -> FunctionRecord | None: ...


class Calls(Protocol):
    """What is asked of the feature of calls."""

    async def create_recorded(
        self, *, function_id: str, app_id: str, key: str, beside: Sequence[Step]
    ) -> Call:
        """A call without arguments, recorded together with ``beside`` and then run."""
        ...

    def clear(self, call_id: str) -> None: ...


class Logs(Protocol):
    """What is asked of the feature of logs."""

    def system(
        self, app_id: str, text: str, *, task_id: str = "", function_id: str = ""
    ) -> None: ...


class ScheduleService:
    """The schedules of all deployed functions.

    One task sleeps until the next due moment, a change, or a setting of the clock. A run is an
    ordinary call with an id made from function and due moment, and is committed in one transaction
    with the schedule's progress: there is no state of the disk from which it would run twice.
    """

    def __init__(
        self,
        store: ScheduleStore,
        apps: Apps,
        functions: Functions,
        calls: Calls,
        logs: Logs,
        clock: WallClock,
    ) -> None:
        self._store = store
        self._apps = apps
        self._functions = functions
        self._calls = calls
        self._logs = logs
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._order: list[tuple[float, str]] = []
        """A heap of due moments; those that an entry no longer has are passed over."""
        self._runs: defaultdict[str, deque[Call]] = defaultdict(deque)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read what earlier runs of the server left, agree with the apps there are, begin."""
        for entry in await self._store.load():
            self._set(entry)
        kept = {app.app_id for app in self._apps.all_live()}
        for app_id in {entry.app_id for entry in self._entries.values()} - kept:
            await self._replace(app_id, {})
        for app in self._apps.all_live():
            await self.app_changed(app)
        self._task = asyncio.create_task(self._run(), name="schedules")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def find(self, function_id: str) -> Entry | None:
        """The schedule of a deployed function."""
        return self._entries.get(function_id)

    # ── apps ────────────────────────────────────────────────────────────────────────────────

    async def app_changed(self, app: App) -> None:
        """Take over the schedules of what is published now; durable when it returns.

        Only deployed apps have schedules in force. An unchanged one goes on as it was.
        """
        wanted: dict[str, Schedule] = {}
        if app.state is AppState.DEPLOYED:
            for function_id in app.layout.function_ids.values():
                record = self._functions.find(function_id)
                if record is not None and record.spec is not None and record.spec.schedule:
                    wanted[function_id] = record.spec.schedule
        await self._replace(app.app_id, wanted)

    async def _replace(self, app_id: str, wanted: dict[str, Schedule]) -> None:
        present = {key: entry for key, entry in self._entries.items() if entry.app_id == app_id}
        now = self._clock.now()
        begun = [
            Entry.begin(function_id, app_id, schedule, now)
            for function_id, schedule in wanted.items()
            if function_id not in present or present[function_id].schedule != schedule
        ]
        ended = [function_id for function_id in present if function_id not in wanted]
        for entry in begun:
            self._set(entry)
        for function_id in ended:
            del self._entries[function_id]
            self._runs.pop(function_id, None)
        await self._store.change(begun, ended)

    def _set(self, entry: Entry) -> None:
        self._entries[entry.function_id] = entry
        heapq.heappush(self._order, (entry.next_at, entry.function_id))
        self._changed.set()

    # ── runs ────────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        seen = float("inf")  # so that the first round looks at everything
        while True:
            self._changed.clear()
            try:
                if self._clock.now() < seen:
                    await self._adjust()
                await self._run_due()
            except Exception:
                log.exception("schedules stumbled; they are tried again")
                await asyncio.sleep(_RETRY_S)
                continue
            seen = self._clock.now()
            await self._sleep(self._next_at())

    def _next_at(self) -> float:
        """When the next one is due; infinite if there is none."""
        while self._order:
            at, function_id = self._order[0]
            entry = self._entries.get(function_id)
            if entry is not None and entry.next_at == at:
                return at
            heapq.heappop(self._order)
        return float("inf")

    async def _sleep(self, until: float) -> None:
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(self._clock.reached(until)),
            asyncio.ensure_future(self._changed.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _adjust(self) -> None:
        """The clock was set back: due moments are not where they were thought to be."""
        now = self._clock.now()
        changed: list[Entry] = []
        for entry in list(self._entries.values()):
            adjusted = entry.adjusted(now)
            if adjusted != entry:
                self._set(adjusted)
                changed.append(adjusted)
        await self._store.change(changed, [])

    async def _run_due(self) -> None:
        while (at := self._next_at()) <= self._clock.now():
            function_id = self._order[0][1]
            entry = self._entries[function_id]
            due = entry.due(self._clock.now())
            assert due is not None, at
            await self._run_one(entry, due)
            if self._entries.get(function_id) == entry:  # else it was changed or ended meanwhile
                self._set(due.after)

    async def _run_one(self, entry: Entry, due: Due) -> None:
        record = self._functions.find(entry.function_id)
        app = self._apps.find(entry.app_id)
        if record is None or record.spec is None or app is None or not app.is_live:
            return
        name = record.spec.display_name
        if due.has_missed:
            text = (
                f"Scheduled runs of {name!r} were missed; the one of {_time(due.at)} is made now."
            )
            self._logs.system(entry.app_id, text, function_id=entry.function_id)
        if not self._has_room(entry.function_id):
            text = (
                f"The run of {name!r} scheduled for {_time(due.at)} is left out: "
                f"{RUNS_KEPT} earlier ones have not finished."
            )
            self._logs.system(entry.app_id, text, function_id=entry.function_id)
            await self._store.change([due.after], [])
            return
        call = await self._calls.create_recorded(
            function_id=entry.function_id,
            app_id=entry.app_id,
            key=f"schedule {entry.function_id} {due.at!r}",
            beside=[self._store.saved(due.after)],
        )
        self._runs[entry.function_id].append(call)
        log.info("scheduled run", function_id=entry.function_id, call_id=call.call_id, due=due.at)

    def _has_room(self, function_id: str) -> bool:
        """Let go of the results of old runs; whether another one may begin."""
        runs = self._runs[function_id]
        while len(runs) >= RUNS_KEPT and runs[0].unfinished == 0:
            self._calls.clear(runs.popleft().call_id)
        return len(runs) < RUNS_KEPT


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
