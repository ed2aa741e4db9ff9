"""Use cases of the history: note what ended, tell what was called and how it went."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

from homeport.calls.model import Input, InputState, Output
from homeport.calls.service import CallService
from homeport.functions.model import FunctionRecord
from homeport.functions.service import FunctionService
from homeport.history.model import (
    KEPT_MAX,
    KEPT_S,
    NAME_MAX,
    Entry,
    Pack,
    Range,
    Summary,
    buckets,
    limited,
)
from homeport.history.store import Column, HistoryStore
from homeport.kernel import ids
from homeport.kernel.clock import Clock

FLUSH_S: Final = 1.0
"""What ended is written that much later, at the latest: all of a second as one row a function."""
PACK_MAX: Final = 256
"""Entries in a pack: an unfinished one is written anew with each flush."""
PACK_AGE_S: Final = 600.0
"""A pack is not continued beyond that age, so that it stands for a short time."""
_PACK: Final = "hp"
_STEP: Final = 5_000
"""Inputs looked at before others get their turn."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose history: of one function, or (``all_variants``) of its base and all its variants."""

    record: FunctionRecord
    all_variants: bool = False

    @property
    def root_id(self) -> str:
        return root_of(self.record)

    @property
    def key(self) -> tuple[Column, str]:
        """How its entries are found."""
        if self.all_variants:
            return "root_id", self.root_id
        return "function_id", self.record.function_id


@dataclass(frozen=True, slots=True)
class Live:
    """An input that has not ended."""

    item: Input

    @property
    def is_running(self) -> bool:
        return self.item.state is InputState.ASSIGNED and self.item.started_at > 0


@dataclass(slots=True)
class _Open:
    """A pack that grows."""

    pack_id: str
    record: FunctionRecord
    began: float
    pack: Pack
    first_enqueued: float = float("inf")
    last_enqueued: float = 0.0
    first_started: float = float("inf")
    first_finished: float = float("inf")
    last_finished: float = 0.0
    is_saved: bool = False

    def add(self, entry: Entry) -> None:
        self.is_saved = False
        self.pack.add(entry)
        _, _, enqueued, started, finished, *_ = entry
        if enqueued < self.first_enqueued:
            self.first_enqueued = enqueued
        if enqueued > self.last_enqueued:
            self.last_enqueued = enqueued
        if 0 < started < self.first_started:
            self.first_started = started
        if finished < self.first_finished:
            self.first_finished = finished
        if finished > self.last_finished:
            self.last_finished = finished

    def row(self) -> dict[str, Any]:
        return {
            "pack_id": self.pack_id,
            "function_id": self.record.function_id,
            "root_id": root_of(self.record),
            "app_id": self.record.app_id,
            "entries": len(self.pack),
            "first_enqueued": self.first_enqueued,
            "last_enqueued": self.last_enqueued,
            "first_started": min(self.first_started, self.last_finished),
            "first_finished": self.first_finished,
            "last_finished": self.last_finished,
            "summary": self.pack.encode_summary(),
            "data": self.pack.encode(),
        }


class HistoryService:
    """What ended, in packs. Nothing is written on the path of an input: packs follow it.

    A pack is written before the rows of the calls in it are deleted, so that a crash in between
    loses neither (``before_deletion``, ``recover``).
    """

    def __init__(
        self, store: HistoryStore, calls: CallService, functions: FunctionService, clock: Clock
    ) -> None:
        self._store = store
        self._calls = calls
        self._functions = functions
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._full: list[_Open] = []
        self._timer: asyncio.TimerHandle | None = None
        self._last_save: asyncio.Future[None] | None = None
        self._is_stopped = False
        calls.on_finish(self.finished)
        calls.before_deletion(self._save)

    # ── noting ──────────────────────────────────────────────────────────────────────────────

    def finished(self, item: Input, output: Output) -> None:
        """An input ended. Places in servers are not inputs: ``served`` tells of their requests."""
        record = self._functions.find(item.call.function_id)
        if record is not None and not (record.spec is not None and record.spec.is_server):
            self._note(record, _entry(item, output))

    def served(
        self, record: FunctionRecord, *, route: str, arrived_at: float, task_id: str, status: int
    ) -> None:
        """A server's request is over; ``status`` 0 if it was given no answer."""
        now = self._clock.now()
        entry = Entry(
            call_id="",
            idx=0,
            enqueued_at=min(arrived_at, now),
            started_at=0.0,
            finished_at=now,
            task_id=task_id,
            status=status,
            name=route[:NAME_MAX],
        )
        self._note(record, entry)

    def _note(self, record: FunctionRecord, entry: Entry) -> None:
        now = self._clock.monotonic()
        found = self._open.get(record.function_id)
        if found is None or len(found.pack) >= PACK_MAX or now > found.began + PACK_AGE_S:
            if found is not None and not found.is_saved:
                self._full.append(found)
            found = _Open(ids.new(_PACK), record, now, Pack())
            self._open[record.function_id] = found
        found.add(entry)
        # Without a database there is none to write to.
        if self._timer is None and not self._is_stopped:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._save)

    def _save(self) -> None:
        """Have what is new written, with the next commit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows = [each.row() for each in self._full]
        self._full.clear()
        now = self._clock.monotonic()
        for function_id, each in list(self._open.items()):
            if not each.is_saved:
                rows.append(each.row())
                each.is_saved = True
            elif now > each.began + PACK_AGE_S:
                del self._open[function_id]
        if rows:
            self._last_save = self._store.save(rows)

    async def saved(self) -> None:
        """Until all that ended by now can be read."""
        self._save()
        if self._last_save is not None:
            await asyncio.shield(self._last_save)

    async def stop(self) -> None:
        """Write what is not written."""
        self._is_stopped = True
        self._save()

    async def recover(self) -> None:
        """After a start: note what ended before a crash and did not get here any more."""
        ended: dict[str, list[tuple[float, Input, Output]]] = defaultdict(list)
        for call in self._calls.all():
            for output in call.outputs:
                item = call.inputs[output.idx]
                ended[call.function_id].append((_finished_at(item, output), item, output))
        for each in ended.values():
            each.sort(key=itemgetter(0))
        times = {name: [at for at, _, _ in each] for name, each in ended.items()}
        noted = await self._store.noted(times)
        for each in ended.values():
            for _, item, output in each:
                if (item.call.call_id, output.idx) not in noted:
                    self.finished(item, output)

    # ── telling ─────────────────────────────────────────────────────────────────────────────

    async def newest(self, subject: Subject, count: int) -> list[Entry | Live]:
        """The last ``count`` inputs (requests) of ``subject``, the newest first.

        Raises ``InvalidError``.
        """
        limited(count, "The number of entries (tail)")
        live = await self._live(subject)
        await self.saved()
        entries = await self._store.newest(*subject.key, count)
        return sorted(_merged(entries, live), key=enqueued_at, reverse=True)[:count]

    async def between(self, subject: Subject, span: Range, limit: int) -> list[Entry | Live]:
        """The first ``limit`` that were enqueued in ``span``, the oldest first.

        Raises ``InvalidError``.
        """
        limited(limit, "The limit of entries")
        live = [each for each in await self._live(subject) if enqueued_at(each) in span]
        await self.saved()
        entries = await self._store.between(*subject.key, span, limit)
        return sorted(_merged(entries, live), key=enqueued_at)[:limit]

    async def count(self, subject: Subject, span: Range, bucket_s: int) -> dict[int, int]:
        """How many were enqueued in ``span``, by number of bucket: all that it covers.

        Raises ``InvalidError``.
        """
        first, end = buckets(span, bucket_s)
        live = await self._live(subject)
        await self.saved()
        found = await self._store.count(*subject.key, span, bucket_s)
        for each in live:
            if enqueued_at(each) in span and each.item.output is None:
                bucket = int(enqueued_at(each) // bucket_s)
                found[bucket] = found.get(bucket, 0) + 1
        return {bucket: found.get(bucket, 0) for bucket in range(first, end)}

    async def summary(self, subject: Subject, span: Range, task_id: str = "") -> Summary:
        """What ended in ``span`` (in that one container)."""
        await self.saved()
        total = Summary()
        for each in (await self._store.totals(*subject.key, span, task_id)).values():
            total.merge(each)
        return total

    async def running_at(self, subject: Subject, at: float, task_id: str = "") -> int:
        """Inputs that ran at that time."""
        live = [each for each in await self._live(subject) if each.is_running]
        await self.saved()
        ended = await self._store.running(*subject.key, at, task_id)
        return ended + sum(
            each.item.output is None
            and each.item.started_at < at
            and task_id in ("", each.item.task_id)
            for each in live
        )

    async def of_app(self, app_id: str, span: Range) -> dict[str, Summary]:
        """What ended in ``span``, by function (with its variants)."""
        await self.saved()
        return await self._store.totals("app_id", app_id, span)

    async def by_bucket(self, subject: Subject, span: Range, bucket_s: int) -> dict[int, Summary]:
        """What ended in ``span``, by number of bucket; without those in which nothing did."""
        await self.saved()
        return await self._store.by_bucket(*subject.key, span, bucket_s)

    async def _live(self, subject: Subject) -> list[Live]:
        """The inputs that have not ended."""
        found: list[Live] = []
        seen = 0
        for function_id in self._live_functions(subject):
            for call in self._calls.unfinished_of(function_id):
                for item in list(call.inputs.values()):
                    seen += 1
                    if seen % _STEP == 0:
                        await asyncio.sleep(0)
                    if item.output is None:
                        found.append(Live(item))
        return found

    def _live_functions(self, subject: Subject) -> list[str]:
        if subject.record.spec is not None and subject.record.spec.is_server:
            return []
        if not subject.all_variants:
            return [subject.record.function_id]
        records = (self._functions.find(each) for each in self._calls.busy_functions())
        return [each.function_id for each in records if each and root_of(each) == subject.root_id]

    # ── upkeep ──────────────────────────────────────────────────────────────────────────────

    async def prune(self) -> int:
        """Forget what is beyond the limits; how many packs."""
        return await self._store.prune(self._clock.now() - KEPT_S, KEPT_MAX)

    async def delete_of_app(self, app_id: str) -> None:
        """Forget what was called in an app that is gone."""
        for function_id, each in list(self._open.items()):
            if each.record.app_id == app_id:
                del self._open[function_id]
        self._full = [each for each in self._full if each.record.app_id != app_id]
        await self._store.delete_of_app(app_id)


def root_of(record: FunctionRecord) -> str:
    """The function that it is a variant of; its own id if it is none."""
    base = record.spec.base_function_id if record.spec is not None else ""
    return base or record.function_id


def enqueued_at(each: Entry | Live) -> float:
    """When it was asked for, in Unix seconds."""
    if isinstance(each, Live):
        return _enqueued_at(each.item)
    return each.enqueued_at


def _entry(item: Input, output: Output) -> Entry:
    started = output.started_at if output.task_id else 0.0
    if started == output.finished_at and item.started_at:
        started = item.started_at  # it ended without its container's word
    return Entry(
        call_id=item.call.call_id,
        idx=output.idx,
        enqueued_at=_enqueued_at(item),
        started_at=started,
        finished_at=_finished_at(item, output),
        task_id=output.task_id,
        status=output.result.status,
        name=item.method_name,
    )


def _enqueued_at(item: Input) -> float:
    return item.enqueued_at or item.call.created_at


def _finished_at(item: Input, output: Output) -> float:
    """Nothing ends before it came, whatever clocks say."""
    return max(output.finished_at, _enqueued_at(item))


def _merged(entries: list[Entry], live: list[Live]) -> list[Entry | Live]:
    """Both; what ended in between is told as it ended."""
    ended = {(entry.call_id, entry.idx) for entry in entries}
    rest = [each for each in live if (each.item.call.call_id, each.item.idx) not in ended]
    return [*entries, *rest]
