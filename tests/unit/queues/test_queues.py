"""Queues on a real database: order, waiting, limits, lifetimes, repeats, restarts, failures."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.feature_home import Home, open_home

from homeport.kernel.errors import ExhaustedError, InvalidError, NotFoundError
from homeport.objects.model import Creation
from homeport.objects.service import Objects
from homeport.objects.store import ObjectStore
from homeport.queues import store as queue_store
from homeport.queues.model import (
    ITEM_BYTES_MAX,
    KEY_BYTES_MAX,
    PACK_BYTES,
    PARTITION_BYTES_MAX,
    PARTITION_ITEMS_MAX,
    QUEUE,
    Item,
    Pack,
    Part,
    Pieces,
    Run,
    check_put,
    packs_of,
    parse_entry_id,
    pieces_of,
    runs_of,
)
from homeport.queues.service import QueueService
from homeport.queues.store import QueueStore
from homeport.queues.taken import TakenItems
from homeport.storage.operations import OperationLog, operations

MIB = 1024 * 1024


@dataclass
class Here:
    """A Queue in a service over a home."""

    home: Home
    queues: QueueService
    queue_id: str

    async def put(self, *values: bytes, key: bytes = b"", ttl_s: int = 0, op: str = "") -> None:
        await self.queues.put(self.queue_id, key, values, ttl_s=ttl_s, operation=op)

    async def get(
        self, count: int = 1, *, timeout_s: float = 0.0, key: bytes = b"", op: str = ""
    ) -> list[bytes]:
        return await self.queues.get(
            self.queue_id, key, count=count, timeout_s=timeout_s, operation=op
        )

    def waiting(self, count: int = 1, *, key: bytes = b"") -> asyncio.Task[list[bytes]]:
        return asyncio.create_task(self.get(count, timeout_s=60, key=key))

    def len(self, key: bytes = b"") -> int:
        return self.queues.len(self.queue_id, key)

    def rows(self) -> Awaitable[int]:
        query = sa.select(sa.func.count()).select_from(queue_store.packs)
        return self.home.database.read(lambda c: c.execute(query).scalar_one())


async def opened(home: Home, *, value_bytes_max: int = MIB, items_max: int = 100_000) -> Here:
    log = OperationLog(home.database, home.clock)
    await log.start()
    objects = Objects(
        QUEUE,
        ObjectStore(home.database),
        home.clock,
        erase=queue_store.erase,
        operations=log,
        ephemeral_timeout_s=900,
    )
    await objects.start()
    queues = QueueService(
        QueueStore(home.database),
        objects,
        log,
        home.clock,
        items_max=items_max,
        value_bytes_max=value_bytes_max,
    )
    await queues.start()
    item = await objects.get_or_create(home.environments.default, "q", Creation.IF_MISSING)
    return Here(home, queues, item.id)


def run(path: Path, *lives: Callable[[Home], Awaitable[None]]) -> None:
    """Each scenario is one life of the server on the same home."""

    async def main() -> None:
        for life in lives:
            async with open_home(path) as home:
                await life(home)

    asyncio.run(main())


@contextlib.contextmanager
def stalled(home: Home) -> Iterator[None]:
    """Nothing is committed inside."""
    go_on = threading.Event()
    blocked = asyncio.ensure_future(home.database.write(lambda _: go_on.wait(30)))
    try:
        yield
    finally:
        go_on.set()
        assert not blocked.done()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("value_bytes_max", [0, MIB])
def test_first_in_first_out_over_restarts(tmp_path: Path, value_bytes_max: int) -> None:
    async def first(home: Home) -> None:
        here = await opened(home, value_bytes_max=value_bytes_max)
        await here.put(b"1", b"2")
        await here.put(b"", b"4", b"5")
        await here.put(b"other", key=b"p")
        assert await here.get() == [b"1"]

    async def second(home: Home) -> None:
        here = await opened(home, value_bytes_max=value_bytes_max)
        assert (here.len(), here.len(b"p")) == (4, 1)
        assert here.queues.size(here.queue_id) == (2, 5)
        await here.put(b"6")
        assert await here.get(3) == [b"2", b"", b"4"]
        assert await here.get(9) == [b"5", b"6"]
        assert await here.get(9) == []
        assert await here.get(key=b"p") == [b"other"]

    run(tmp_path, first, second)


def test_getters_are_woken_in_the_order_they_came(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        getters = [here.waiting(1 if n != 1 else 2) for n in range(4)]
        await settle()
        await here.put(b"a", b"b", b"c", b"d", b"e", b"f")
        assert await asyncio.gather(*getters) == [[b"a"], [b"b", b"c"], [b"d"], [b"e"]]
        assert here.len() == 1

    run(tmp_path, life)


def test_ten_thousand_getters(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        getters = [here.waiting(key=b"%d" % (n % 100)) for n in range(10_000)]
        await settle()
        for key in range(100):
            await here.put(*(b"%d" % n for n in range(100)), key=b"%d" % key)
        found = await asyncio.gather(*getters)
        assert all(found[n] == [b"%d" % (n // 100)] for n in range(10_000))
        assert here.queues.size(here.queue_id).items == 0
        assert here.queues._partitions.of_queue(here.queue_id) == []

    run(tmp_path, life)


def test_waiting_ends(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        assert await here.get(timeout_s=0.05) == []
        assert await here.get(timeout_s=-1) == []
        assert here.queues._partitions.of_queue(here.queue_id) == []

    run(tmp_path, life)


@pytest.mark.parametrize("steps", range(12))
def test_a_cancelled_get_takes_nothing(tmp_path: Path, steps: int) -> None:
    """Cancelled at any moment between the wait and the answer."""

    async def first(home: Home) -> None:
        here = await opened(home, value_bytes_max=0)
        await here.put(b"0")
        await here.get()
        getter = here.waiting(2)
        await settle()
        put = asyncio.create_task(here.put(b"1", b"2", b"3"))
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        getter.cancel()
        got = (await asyncio.gather(getter, return_exceptions=True))[0]
        await put
        if isinstance(got, BaseException):
            assert await here.get(1) == [b"1"]
            assert here.len() == 2
        else:
            assert got == [b"1", b"2"]
            assert here.len() == 1

    async def second(home: Home) -> None:
        here = await opened(home)
        assert (await here.get(9))[-1] == b"3"

    run(tmp_path, first, second)


def test_what_is_given_back_is_in_its_place(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        await here.put(*(b"%d" % n for n in range(6)))
        order = random.Random(1)
        with stalled(home):
            for _ in range(30):
                getters = [here.waiting(2) for _ in range(3)]
                await settle()
                order.shuffle(getters)
                for getter in getters:
                    getter.cancel()
                    await asyncio.gather(getter, return_exceptions=True)
                assert here.len() == 6
        assert await here.get(9) == [b"%d" % n for n in range(6)]

    run(tmp_path, life)


def test_what_was_cleared_is_not_given_back(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        await here.put(b"1", b"2")
        with stalled(home):
            getter = here.waiting()
            await settle()
            clearing = asyncio.create_task(
                here.queues.clear(here.queue_id, b"", all_partitions=True)
            )
            await settle()
            putting = asyncio.create_task(here.put(b"3"))
            await settle()
            getter.cancel()
            await asyncio.gather(getter, return_exceptions=True)
        assert getter.cancelled()
        await clearing
        await putting
        assert await here.get(9) == [b"3"]

    run(tmp_path, life)


def test_a_call_repeated_after_a_restart_has_been_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def first(home: Home) -> None:
        here = await opened(home)
        await here.put(b"1", b"2", b"3", op="put")
        assert await here.get(2, op="get") == [b"1", b"2"]

    async def second(home: Home) -> None:
        home.clock.offset = 3600  # which says nothing: a clock can be set
        here = await opened(home)
        await here.put(b"1", b"2", b"3", op="put")
        assert await here.get(2, op="get") == [b"1", b"2"]
        home.clock.offset = -3600
        assert await here.get(9, op="another get") == [b"3"]
        assert here.len() == 0

    async def third(home: Home) -> None:
        here = await opened(home)
        assert await here.get(9, op="another get") == [b"3"]

    async def much_later(home: Home) -> None:
        monkeypatch.setattr("homeport.storage.operations.RETENTION_S", 0.01)
        here = await opened(home)
        async with asyncio.timeout(30):
            while await here.get(2, op="get"):
                await asyncio.sleep(0.01)
        query = sa.select(sa.func.count()).select_from(operations)
        assert await home.database.read(lambda c: c.execute(query).scalar_one()) == 0

    run(tmp_path, first, second, third, much_later)


def test_a_cancelled_get_is_not_remembered(tmp_path: Path) -> None:
    async def first(home: Home) -> None:
        here = await opened(home)
        await here.put(b"1")
        with stalled(home):
            getter = asyncio.create_task(here.get(op="get"))
            await settle()
            getter.cancel()
            await asyncio.gather(getter, return_exceptions=True)
        assert getter.cancelled()
        assert here.len() == 1

    async def second(home: Home) -> None:
        here = await opened(home)
        assert here.len() == 1
        assert await here.get(op="get") == [b"1"]
        assert here.len() == 0

    run(tmp_path, first, second)


def test_partitions_expire(tmp_path: Path) -> None:
    async def first(home: Home) -> None:
        here = await opened(home)
        await here.put(b"1", key=b"short", ttl_s=100)
        await here.put(b"1", key=b"extended", ttl_s=100)
        await here.put(b"1", key=b"default")
        home.clock.offset = 90
        await here.put(b"2", key=b"extended", ttl_s=100)
        home.clock.offset = 110
        assert await here.get(9, key=b"short") == []
        assert here.len(b"extended") == 2
        assert here.queues.size(here.queue_id) == (2, 3)

    async def second(home: Home) -> None:
        home.clock.offset = 300
        here = await opened(home)
        assert (here.len(b"extended"), here.len(b"default")) == (0, 1)
        home.clock.offset = 90_000
        assert here.len(b"default") == 0
        await home.database.write(lambda _: None)
        assert await here.rows() == 0

    run(tmp_path, first, second)


def test_a_partition_expires_by_itself(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        await here.put(b"1", ttl_s=1)
        async with asyncio.timeout(30):
            while await here.rows():
                await asyncio.sleep(0.05)
        assert here.len() == 0

    run(tmp_path, life)


def test_full(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home, items_max=PARTITION_ITEMS_MAX + 10)
        await here.put(*[b"x"] * PARTITION_ITEMS_MAX)
        with pytest.raises(ExhaustedError, match="has 5000 of 5000 items") as full:
            await here.put(b"x")
        assert full.value.retry_after_s is None  # clients would wait without their own limit
        await here.put(*[b"x"] * 10, key=b"other")
        with pytest.raises(ExhaustedError, match="queue_items_max"):
            await here.put(b"x", key=b"other")
        await here.get(2)
        await here.put(b"x")
        assert here.len() == PARTITION_ITEMS_MAX - 1

    run(tmp_path, life)


def test_limits_of_a_put() -> None:
    check_put(bytes(KEY_BYTES_MAX), [bytes(ITEM_BYTES_MAX)] * 64, 5)
    for values in (
        [b""] * (PARTITION_ITEMS_MAX + 1),
        [bytes(ITEM_BYTES_MAX + 1)],
        [bytes(ITEM_BYTES_MAX)] * (PARTITION_BYTES_MAX // ITEM_BYTES_MAX + 1),
    ):
        with pytest.raises(InvalidError, match=r"status = '413'"):
            check_put(b"", values, 5)
    with pytest.raises(InvalidError, match="65 bytes"):
        check_put(bytes(65), [b""], 5)
    with pytest.raises(InvalidError, match="expire"):
        check_put(b"", [b""], -1)


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "9" * 40, "١"])
def test_entry_ids_are_checked(text: str) -> None:
    assert parse_entry_id("") == 0
    assert parse_entry_id("17") == 17
    with pytest.raises(InvalidError):
        parse_entry_id(text)


def test_scans(tmp_path: Path) -> None:
    async def scan(here: Here, last: str, timeout_s: float = 0.0) -> list[tuple[str, bytes]]:
        return await here.queues.next_items(
            here.queue_id, b"", last_entry_id=last, timeout_s=timeout_s
        )

    ids: list[str] = []

    async def first(home: Home) -> None:
        here = await opened(home, value_bytes_max=0)
        assert await scan(here, "") == []
        assert await scan(here, "", 0.05) == []
        await here.put(*(b"%d" % n for n in range(450)))
        found: list[tuple[str, bytes]] = []
        while page := await scan(here, found[-1][0] if found else ""):
            found += page
        assert [value for _, value in found] == [b"%d" % n for n in range(450)]
        assert here.len() == 450
        ids.append(found[-1][0])
        await here.get(450)
        waiting = asyncio.create_task(scan(here, ids[-1], 60))
        await settle()
        await here.put(b"next")
        assert [value for _, value in await waiting] == [b"next"]
        await here.get()

    async def second(home: Home) -> None:
        home.clock.offset = 3600  # nothing is left to count on from
        here = await opened(home)
        await here.put(b"after")
        assert [value for _, value in await scan(here, ids[-1])] == [b"after"]

    run(tmp_path, first, second)


def test_clear(tmp_path: Path) -> None:
    async def first(home: Home) -> None:
        here = await opened(home)
        for key in (b"", b"a", b"b"):
            await here.put(*[b"x"] * 10, key=key)
        await here.queues.clear(here.queue_id, b"a", all_partitions=False)
        assert here.queues.size(here.queue_id) == (2, 20)
        await here.queues.clear(here.queue_id, b"", all_partitions=True)
        assert here.queues.size(here.queue_id) == (0, 0)
        await here.put(b"y")

    async def second(home: Home) -> None:
        here = await opened(home)
        assert await here.get(9) == [b"y"]

    run(tmp_path, first, second)


def test_a_deleted_queue_wakes_those_who_wait(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        await here.put(b"x", key=b"p")
        getter = here.waiting()
        scan = asyncio.create_task(
            here.queues.next_items(here.queue_id, b"z", last_entry_id="", timeout_s=60)
        )
        await settle()
        await here.queues.objects.delete(here.queue_id)
        for waiting in (getter, scan, here.get(), here.put(b"x")):
            with pytest.raises(NotFoundError):
                await waiting
        with pytest.raises(NotFoundError):
            here.len()
        assert await here.rows() == 0

    run(tmp_path, life)


def test_what_failed_to_commit_did_not_happen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        await here.put(b"kept", key=b"p")
        commit = home.database._commit_group
        getter = here.waiting()
        await settle()
        loop = asyncio.get_running_loop()

        def fail(_connection: object, group: list[object], **_: object) -> None:
            def tell() -> None:
                for item in group:
                    item.future.set_exception(OSError("disk full"))  # type: ignore[attr-defined]

            monkeypatch.setattr(home.database, "_commit_group", commit)
            loop.call_soon_threadsafe(tell)

        monkeypatch.setattr(home.database, "_commit_group", fail)
        outcomes = await asyncio.gather(
            here.get(key=b"p"), here.put(b"1"), getter, return_exceptions=True
        )
        assert outcomes[0] == [b"kept"] or isinstance(outcomes[0], OSError)
        assert any(isinstance(outcome, OSError) for outcome in outcomes)
        await here.put(b"2")
        left = [*(await here.get(9, key=b"p")), *(await here.get(9))]
        acknowledged = [b"kept", b"2"]
        given = [
            value
            for found in (outcomes[0], outcomes[2], left)
            if isinstance(found, list)
            for value in found
        ]
        assert sorted(given) == sorted(acknowledged + ([b"1"] if outcomes[1] is None else []))

    run(tmp_path, life)


def test_taken_items_are_deleted_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("homeport.queues.taken.RETENTION_S", 0.2)
        monkeypatch.setattr("homeport.queues.taken._TOGETHER_S", 0.1)
        gone: list[tuple[list[Run], list[Run]]] = []
        done = asyncio.Event()

        def delete(whole: Sequence[Run], rests: Sequence[Run]) -> None:
            gone.append((list(whole), list(rests)))
            done.set()

        taken = TakenItems(delete)
        first, second = Pack(10, 19), Pack(20, 29)
        taken.add(Pieces([(1, 2)]), 10)
        taken.add(Pieces([(5, 6)], [Part(first, 10, 11)]), 10)
        back = taken.add(Pieces([(3, 4)], [Part(first, 12, 12), Part(second, 20, 20)]), 10)
        taken.add(Pieces(parts=[Part(first, 13, 19)]), 10)
        taken.forget(back)
        async with asyncio.timeout(20):
            await done.wait()
        assert gone == [([(1, 2), (5, 6)], [(10, 19)])]
        taken.stop()

    asyncio.run(main())


@given(st.sets(st.integers(0, 60)))
def test_runs(seqs: set[int]) -> None:
    runs = runs_of(sorted(seqs))
    assert [n for first, last in runs for n in range(first, last + 1)] == sorted(seqs)
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(runs))


@given(st.lists(st.integers(0, 2 * PACK_BYTES), max_size=8), st.integers(1, 9))
def test_packs(sizes: list[int], first: int) -> None:
    packs = packs_of(first, sizes)
    assert [n for pack in packs for n in range(pack.first, pack.last + 1)] == list(
        range(first, first + len(sizes))
    )
    for pack in packs:
        inside = sizes[pack.first - first : pack.last - first + 1]
        assert len(inside) == 1 or sum(inside) <= PACK_BYTES


@given(st.lists(st.integers(1, 6), max_size=8), st.data())
def test_pieces(counts: list[int], data: st.DataObject) -> None:
    items: list[Item] = []
    for count in counts:
        seq = len(items)
        pack = Pack(seq, seq + count - 1)
        items.extend(Item(n, 0, b"", pack) for n in range(seq, seq + count))
    chosen = data.draw(st.sets(st.sampled_from(items)) if items else st.just(set[Item]()))
    taken = sorted(chosen, key=lambda item: item.seq)
    pieces = pieces_of(taken)
    runs = pieces.runs()
    assert [n for a, b in runs for n in range(a, b + 1)] == [item.seq for item in taken]
    for part in pieces.parts:
        assert part.pack.first <= part.first <= part.last <= part.pack.last
        assert (part.first, part.last) != (part.pack.first, part.pack.last)
    for begin, end in pieces.whole:
        inside = {item.pack for item in items if begin <= item.seq <= end}
        assert min(pack.first for pack in inside) == begin
        assert max(pack.last for pack in inside) == end


def test_a_pack_goes_when_all_of_it_was_taken_long_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeport.queues.taken.RETENTION_S", 0.1)
    monkeypatch.setattr("homeport.queues.taken._TOGETHER_S", 0.0)

    async def emptied(here: Here) -> None:
        async with asyncio.timeout(30):
            while await here.rows() or await taken_rows(here):
                await asyncio.sleep(0.02)

    def taken_rows(here: Here) -> Awaitable[int]:
        query = sa.select(sa.func.count()).select_from(queue_store.parts)
        return here.home.database.read(lambda c: c.execute(query).scalar_one())

    async def first(home: Home) -> None:
        here = await opened(home)
        await here.put(*(b"%d" % n for n in range(5)))
        assert await here.rows() == 1
        assert await here.get(2) == [b"0", b"1"]
        async with asyncio.timeout(30):  # until what was taken is due
            while here.queues._taken._batches:
                await asyncio.sleep(0.02)
        await home.database.write(lambda _: None)
        assert await here.rows() == 1  # three of its items still wait
        assert [await here.get() for _ in range(3)] == [[b"2"], [b"3"], [b"4"]]
        await emptied(here)
        await here.put(b"a", b"b", b"c")
        await here.get()
        await here.queues.clear(here.queue_id, b"", all_partitions=True)
        await emptied(here)
        await here.put(b"d", b"e", b"f")
        await here.get()

    async def second(home: Home) -> None:
        here = await opened(home)
        assert await here.get(9) == [b"e", b"f"]
        await emptied(here)
        await here.put(b"g", b"h")
        await here.get()
        await here.queues.objects.delete(here.queue_id)
        await emptied(here)

    run(tmp_path, first, second)


@pytest.mark.parametrize("value_bytes_max", [0, MIB])
def test_a_large_put_taken_in_pieces_over_restarts(tmp_path: Path, value_bytes_max: int) -> None:
    values = [b"%d" % n + bytes(n % 700) for n in range(1500)]  # four packs or so
    left = list(values)
    choice = random.Random(1)
    repeats: list[tuple[str, int, list[bytes]]] = []

    async def life(home: Home) -> None:
        here = await opened(home, value_bytes_max=value_bytes_max)
        if not repeats:
            await here.put(*values)
            assert 2 < await here.rows() < 10
        assert here.len() == len(left)
        for op, count, found in repeats:
            assert await here.get(count, op=op) == found
        for _ in range(12):
            count = choice.choice((1, 1, 7, 100))
            op = f"get {len(repeats)}"
            found = await here.get(count, op=op)
            assert found == left[:count]
            del left[:count]
            repeats.append((op, count, found))
            with stalled(home):
                getters = [here.waiting(choice.choice((1, 30))) for _ in range(3)]
                await settle()
                choice.shuffle(getters)
                for getter in getters:
                    getter.cancel()
                await asyncio.gather(*getters, return_exceptions=True)
            assert here.len() == len(left)

    run(tmp_path, life, life, life)
    assert len(left) < len(values)


def test_a_take_that_fails_to_commit_is_not_deleted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeport.queues.taken.RETENTION_S", 0.1)
    monkeypatch.setattr("homeport.queues.taken._TOGETHER_S", 0.0)

    async def first(home: Home) -> None:
        here = await opened(home)
        await here.put(b"kept", b"kept too")
        append = home.database.append_all

        def fail(steps: object) -> asyncio.Future[None]:
            monkeypatch.setattr(home.database, "append_all", append)
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(OSError("broken"))
            return failed

        monkeypatch.setattr(home.database, "append_all", fail)
        with pytest.raises(OSError, match="broken"):
            await here.get(2)
        async with asyncio.timeout(30):
            while here.queues._taken._batches:
                await asyncio.sleep(0.02)
        await home.database.write(lambda _: None)
        assert await here.get(1) == [b"kept"]

    async def second(home: Home) -> None:
        here = await opened(home)
        assert await here.get(9) == [b"kept too"]

    run(tmp_path, first, second)
