"""The history with a real database, behind calls whose executor does nothing by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from tests.unit.feature_home import SettableClock
from tests.unit.scheduler.test_placement import SPEC

from homeport.calls import service as calls_service
from homeport.calls.model import Call, CallType, Input, InputState, Invocation, Output
from homeport.calls.service import CallService, InputSpec
from homeport.calls.store import CallStore
from homeport.functions.model import FunctionRecord
from homeport.functions.service import FunctionService
from homeport.functions.store import FunctionStore
from homeport.history import service as history_service
from homeport.history.model import KEPT_S, Entry, Range
from homeport.history.service import HistoryService, Live, Subject, enqueued_at
from homeport.history.store import HistoryStore
from homeport.kernel.errors import InvalidError
from homeport.link.messages import STATUS_FAILURE, STATUS_SUCCESS, Result
from homeport.storage.database import Database

START = 1_700_000_000.0


class Clock(SettableClock):
    """Stands at ``START``, until it is moved."""

    def now(self) -> float:
        return START + self.offset


class Nothing:
    """Runs nothing."""

    def enqueue(self, inputs: Sequence[Input]) -> None: ...

    def cancel(self, inputs: Sequence[Input], *, terminate_containers: bool) -> None: ...

    def work_finished(self, app_id: str) -> None: ...


@dataclass
class Home:
    """One installation's calls and their history."""

    clock: Clock
    database: Database
    functions: FunctionService
    calls: CallService
    history: HistoryService

    async def function(
        self, function_id: str, base: str = "", *, is_server: bool = False
    ) -> Subject:
        spec = msgspec.structs.replace(
            SPEC,
            function_id=function_id,
            app_id="ap-1",
            base_function_id=base,
            is_server=is_server,
        )
        record = FunctionRecord(
            function_id=function_id,
            app_id="ap-1",
            tag=function_id,
            handle=b"",
            created_at=START,
            spec=spec,
        )
        return Subject(await self.functions.save(record))

    async def call(self, subject: Subject, count: int = 1, method: str = "") -> Call:
        """A call with ``count`` inputs, a second each after the other."""
        call = await self.calls.create(
            function_id=subject.record.function_id,
            app_id="ap-1",
            type_=CallType.MAP,
            invocation=Invocation.SYNC,
            parent_input_id="",
            inputs=[],
            key="",
        )
        for idx in range(count):
            await self.calls.put_inputs(call.call_id, [InputSpec(idx, b"", "", 1, method)])
            self.clock.offset += 1
        return call

    async def finish(
        self, call: Call, *, status: int = STATUS_SUCCESS, task_id: str = "ta-1", took: float = 2.0
    ) -> None:
        """End all inputs of a call, which ran for the last ``took`` seconds."""
        now = self.clock.now()
        outputs = [
            (item, Output(item.input_id, item.idx, Result(status), 1, task_id, now - took, now))
            for item in call.inputs.values()
            if item.output is None
        ]
        await asyncio.gather(*self.calls.finish(outputs))

    async def calls_kept(self) -> int:
        query = sa.text("SELECT count(*) FROM calls")
        return await self.database.read(lambda connection: connection.execute(query).scalar_one())


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Home]:
    database = Database.sqlite(path / "x.db")
    await database.start()
    clock = Clock()
    functions = FunctionService(FunctionStore(database))
    await functions.start()
    calls = CallService(
        CallStore(database),
        Nothing(),  # pyright: ignore[reportArgumentType]
        clock,
        inputs_pending_max=10_000,
        result_retention_s=10**9,
        abandoned_call_s=60,
    )
    history = HistoryService(HistoryStore(database), calls, functions, clock)
    await calls.start()
    await history.recover()
    try:
        yield Home(clock, database, functions, calls, history)
    finally:
        await calls.stop()
        await history.stop()
        await database.stop()


def run(path: Path, scenario: Callable[[Home], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(path) as home:
            await scenario(home)

    asyncio.run(main())


def idxs(found: Sequence[Entry | Live]) -> list[int]:
    return [each.item.idx if isinstance(each, Live) else each.idx for each in found]


WHENEVER = Range(0.0, 10**10)


def test_ended_and_waiting_inputs_are_told_together(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        subject = await home.function("fu-1")
        ended = await home.call(subject, 2, method="m")
        await home.finish(ended)
        waiting = await home.call(subject, 2)
        waiting.inputs[0].state = InputState.ASSIGNED
        waiting.inputs[0].started_at = home.clock.now()
        found = await home.history.newest(subject, 10)
        assert [isinstance(each, Live) for each in found] == [True, True, False, False]
        assert idxs(found) == [1, 0, 1, 0]
        assert [each.is_running for each in found if isinstance(each, Live)] == [False, True]
        last = found[-1]
        assert isinstance(last, Entry)
        assert last == Entry(ended.call_id, 0, START, START, START + 2, "ta-1", STATUS_SUCCESS, "m")
        assert idxs(await home.history.between(subject, WHENEVER, 3)) == [0, 1, 0]
        assert await home.history.running_at(subject, home.clock.now() + 1) == 1

    run(tmp_path, scenario)


def test_a_call_stays_known_when_its_rows_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_service, "_DELETE_DELAY_S", 0.0)

    async def scenario(home: Home) -> None:
        subject = await home.function("fu-1")
        call = await home.call(subject)
        await home.finish(call)
        home.calls.clear(call.call_id)
        while await home.calls_kept():
            await asyncio.sleep(0.01)
        assert len(await home.history.newest(subject, 10)) == 1

    run(tmp_path, scenario)

    async def after_a_restart(home: Home) -> None:
        subject = Subject(home.functions.get("fu-1"))
        assert len(await home.history.newest(subject, 10)) == 1

    run(tmp_path, after_a_restart)


@pytest.mark.parametrize("noted_since", [True, False])
def test_a_crash_after_the_clock_was_set_back_loses_nothing(
    tmp_path: Path, noted_since: bool
) -> None:
    """It is right again at the start after it."""

    async def crashes(home: Home) -> None:
        subject = await home.function("fu-1")
        other = await home.function("fu-2")
        await home.finish(await home.call(other))
        await home.history.saved()
        home.clock.offset -= 600
        if noted_since:
            await home.finish(await home.call(subject))
            await home.history.saved()
        home.history._save = lambda: None  # pyright: ignore[reportPrivateUsage]
        await home.finish(await home.call(subject), status=STATUS_FAILURE)

    run(tmp_path, crashes)

    async def again(home: Home) -> None:
        for function_id, count in (("fu-1", 1 + noted_since), ("fu-2", 1)):
            subject = Subject(home.functions.get(function_id))
            assert len(await home.history.newest(subject, 10)) == count

    run(tmp_path, again)
    run(tmp_path, again)


@pytest.mark.parametrize("behind", [690, 90])
@pytest.mark.parametrize("noted_since", [True, False])
def test_a_crash_while_the_clock_is_behind_loses_nothing(
    tmp_path: Path, noted_since: bool, behind: float
) -> None:
    """Of the same function, in the same pack; whether or not something was noted in between."""

    async def crashes(home: Home) -> None:
        subject = await home.function("fu-1")
        home.clock.offset += behind + 10
        await home.finish(await home.call(subject))
        await home.history.saved()
        home.clock.offset -= behind
        if noted_since:
            await home.finish(await home.call(subject))
            await home.history.saved()
        home.history._save = lambda: None  # pyright: ignore[reportPrivateUsage]
        await home.finish(await home.call(subject), status=STATUS_FAILURE)

    run(tmp_path, crashes)

    async def again(home: Home) -> None:
        found = await home.history.newest(Subject(home.functions.get("fu-1")), 10)
        assert len(found) == 2 + noted_since

    run(tmp_path, again)
    run(tmp_path, again)  # and once only


def test_a_pack_that_was_not_written_while_later_ones_were_is_noted(tmp_path: Path) -> None:
    """On a full disk the smaller one may fit."""

    async def crashes(home: Home) -> None:
        subject, other = await home.function("fu-1"), await home.function("fu-2")
        await home.finish(await home.call(subject))
        home.history._open.clear()  # pyright: ignore[reportPrivateUsage]
        home.clock.offset += 600
        await home.finish(await home.call(other))
        await home.history.saved()

    run(tmp_path, crashes)

    async def again(home: Home) -> None:
        for function_id in ("fu-1", "fu-2"):
            subject = Subject(home.functions.get(function_id))
            assert len(await home.history.newest(subject, 10)) == 1

    run(tmp_path, again)
    run(tmp_path, again)


def test_what_a_crash_kept_from_the_history_is_noted_at_the_next_start(tmp_path: Path) -> None:
    async def crashes(home: Home) -> None:
        subject = await home.function("fu-1")
        await home.finish(await home.call(subject))
        await home.history.saved()
        home.clock.offset += 1
        home.history._save = lambda: None  # pyright: ignore[reportPrivateUsage]
        await home.finish(await home.call(subject), status=STATUS_FAILURE)

    run(tmp_path, crashes)

    async def again(home: Home) -> None:
        subject = Subject(home.functions.get("fu-1"))
        found = await home.history.newest(subject, 10)
        assert [each.status for each in found if isinstance(each, Entry)] == [
            STATUS_FAILURE,
            STATUS_SUCCESS,
        ]

    run(tmp_path, again)
    run(tmp_path, again)  # and once only


def test_variants_are_told_of_alone_or_with_their_family(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        base = await home.function("fu-1")
        variant = await home.function("fu-2", base="fu-1")
        other = await home.function("fu-3")
        for number, subject in enumerate((base, variant, other)):
            await home.finish(await home.call(subject, number + 1))
            await home.call(subject, number + 1)
        for record, all_variants, expected in (
            (base.record, False, 2),
            (variant.record, False, 4),
            (base.record, True, 6),
            (variant.record, True, 6),
            (other.record, True, 6),
        ):
            subject = Subject(record, all_variants)
            assert len(await home.history.newest(subject, 100)) == expected
            counted = await home.history.count(subject, Range(START, START + 1000), 100)
            assert sum(counted.values()) == expected
        found = await home.history.of_app("ap-1", WHENEVER)
        assert {root: summary.total for root, summary in found.items()} == {"fu-1": 3, "fu-3": 3}

    run(tmp_path, scenario)


def test_many_packs_agree_with_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_service, "PACK_MAX", 7)

    async def scenario(home: Home) -> None:
        subject = await home.function("fu-1")
        times: list[float] = []
        for number in range(40):
            call = await home.call(subject, 3)
            # Some end long after others that came later.
            if number % 4:
                await home.finish(call, task_id=f"ta-{number % 3}", took=number % 5)
            times += [item.enqueued_at for item in call.inputs.values()]
        for call in home.calls.all():
            home.clock.offset += 1
            await home.finish(call, status=STATUS_FAILURE, task_id="ta-9")
        times.sort()
        for count in (1, 5, 50, 120, 500):
            found = await home.history.newest(subject, count)
            assert [enqueued_at(each) for each in found] == times[::-1][:count]
        for first, last in ((0, 500), (10, 20), (33, 34), (50, 100)):
            span = Range(START + first, START + last)
            within = [time for time in times if time in span]
            found = await home.history.between(subject, span, 1000)
            assert [enqueued_at(each) for each in found] == within
            assert [enqueued_at(each) for each in await home.history.between(subject, span, 4)] == (
                within[:4]
            )
            for bucket_s in (1, 7, 1000):
                counted = await home.history.count(subject, span, bucket_s)
                assert sum(counted.values()) == len(within)
                for bucket, count in counted.items():
                    assert count == sum(time // bucket_s == bucket for time in within)
        entries = list(await home.history.newest(subject, 500))
        for first, last in ((0, 1000), (20, 60), (110, 130)):
            span = Range(START + first, START + last)
            for task_id in ("", "ta-1", "ta-9"):
                mine = [
                    each
                    for each in entries
                    if isinstance(each, Entry) and task_id in ("", each.task_id)
                ]
                ended = [each for each in mine if each.finished_at in span]
                found = await home.history.summary(subject, span, task_id)
                assert found.total == len(ended)
                assert found.failed == sum(each.status == STATUS_FAILURE for each in ended)
                at = span.until
                running = sum(0 < each.started_at < at <= each.finished_at for each in mine)
                assert await home.history.running_at(subject, at, task_id) == running
            by_bucket = await home.history.by_bucket(subject, span, 10)
            total = await home.history.summary(subject, span)
            assert sum(each.total for each in by_bucket.values()) == total.total

    run(tmp_path, scenario)


def test_packs_are_few(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        subject = await home.function("fu-1")
        for _ in range(30):
            await home.finish(await home.call(subject, 10))
            await home.history.saved()
        query = sa.text("SELECT count(*), sum(entries) FROM history_packs")
        packs, entries = await home.database.read(
            lambda connection: tuple(connection.execute(query).one())
        )
        assert (packs, entries) == (2, 300)

    run(tmp_path, scenario)


def test_cancelled_before_it_ran_has_no_start(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        subject = await home.function("fu-1")
        await home.finish(await home.call(subject), task_id="")
        (found,) = await home.history.newest(subject, 1)
        assert isinstance(found, Entry)
        assert found.started_at == 0.0

    run(tmp_path, scenario)


def test_requests_of_a_server_are_noted_and_its_places_are_not(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        subject = await home.function("fu-1", is_server=True)
        await home.finish(await home.call(subject))
        home.history.served(
            subject.record, route="/x" * 500, arrived_at=START, task_id="ta-1", status=200
        )
        (found,) = await home.history.newest(subject, 10)
        assert isinstance(found, Entry)
        assert (found.name, found.status, found.enqueued_at) == ("/x" * 100, 200, START)

    run(tmp_path, scenario)


def test_old_packs_and_too_many_entries_are_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_service, "PACK_MAX", 10)

    async def scenario(home: Home) -> None:
        subject = await home.function("fu-1")
        await home.finish(await home.call(subject, 10))
        home.clock.offset += KEPT_S
        await home.finish(await home.call(subject, 40))
        await home.history.saved()
        assert await home.history.prune() == 1
        assert (await home.history.summary(subject, WHENEVER)).total == 40
        monkeypatch.setattr(history_service, "KEPT_MAX", 25)
        assert await home.history.prune() == 2
        assert (await home.history.summary(subject, WHENEVER)).total == 20

    run(tmp_path, scenario)


def test_what_was_called_in_an_app_goes_with_it(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        subject = await home.function("fu-1")
        await home.finish(await home.call(subject))
        await home.history.saved()
        await home.finish(await home.call(subject))
        await home.history.delete_of_app("ap-1")
        assert await home.history.newest(subject, 10) == []

    run(tmp_path, scenario)


def test_bounds_are_kept(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        subject = await home.function("fu-1")
        with pytest.raises(InvalidError):
            await home.history.newest(subject, 0)
        with pytest.raises(InvalidError):
            await home.history.between(subject, WHENEVER, 0)
        with pytest.raises(InvalidError):
            await home.history.count(subject, WHENEVER, 0)

    run(tmp_path, scenario)
