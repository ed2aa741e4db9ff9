"""Dicts on a real database: order, limits, lifetimes, repeats, restarts, failing commits."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.unit.feature_home import Home, open_home

from homeport.dicts import store as dict_store
from homeport.dicts.cache import EntryCache, Slot
from homeport.dicts.model import (
    DICT,
    INLINE_BYTES_MAX,
    KEY_BYTES_MAX,
    LIFETIME_S,
    TOUCH_S,
    UPDATES_MAX,
    VALUE_BYTES_MAX,
    Entry,
    check_updates,
)
from homeport.dicts.service import DictService
from homeport.dicts.store import DictStore
from homeport.kernel.errors import ExhaustedError, InvalidError, NotFoundError
from homeport.objects.model import Creation
from homeport.objects.service import Objects
from homeport.objects.store import ObjectStore
from homeport.storage.operations import OperationLog

GIB = 1024**3


@dataclass
class Here:
    """A Dict in a service over a home."""

    home: Home
    dicts: DictService
    dict_id: str

    async def contents(self) -> dict[bytes, bytes]:
        return {key: v async for key, v in self.dicts.contents(self.dict_id, with_values=True)}


async def opened(home: Home, *, cache_bytes: int = GIB, dict_bytes_max: int = GIB) -> Here:
    operations = OperationLog(home.database, home.clock)
    await operations.start()
    objects = Objects(
        DICT,
        ObjectStore(home.database),
        home.clock,
        erase=dict_store.erase,
        operations=operations,
        ephemeral_timeout_s=900,
    )
    await objects.start()
    dicts = DictService(
        DictStore(home.database),
        objects,
        home.files,
        operations,
        home.clock,
        cache=EntryCache(cache_bytes),
        dict_bytes_max=dict_bytes_max,
    )
    item = await dicts.create(home.environments.default, "d", Creation.IF_MISSING)
    return Here(home, dicts, item.id)


def run(path: Path, *lives: Callable[[Home], Awaitable[None]]) -> None:
    """Each scenario is one life of the server on the same home."""

    async def main() -> None:
        for life in lives:
            async with open_home(path) as home:
                await life(home)

    asyncio.run(main())


def test_entries(tmp_path: Path) -> None:
    async def first(home: Home) -> None:
        here = await opened(home)
        assert await here.dicts.get(here.dict_id, b"k") is None
        assert await here.dicts.update(here.dict_id, [(b"k", b"1"), (b"", b"empty key")])
        assert await here.dicts.get(here.dict_id, b"k") == b"1"
        assert await here.dicts.contains(here.dict_id, b"k")
        assert await here.dicts.update(here.dict_id, [(b"k", b"2")])
        assert not await here.dicts.update(here.dict_id, [(b"k", b"3")], if_not_exists=True)
        assert await here.dicts.update(here.dict_id, [(b"n", b"")], if_not_exists=True)
        assert await here.dicts.get(here.dict_id, b"n") == b""

    async def second(home: Home) -> None:
        here = await opened(home)
        assert await here.contents() == {b"k": b"2", b"": b"empty key", b"n": b""}
        assert await here.dicts.len(here.dict_id) == 3
        assert await here.dicts.pop(here.dict_id, b"k") == b"2"
        assert await here.dicts.pop(here.dict_id, b"k") is None
        await here.dicts.clear(here.dict_id)
        assert await here.contents() == {}
        assert await here.dicts.get(here.dict_id, b"n") is None

    run(tmp_path, first, second)


def test_a_new_dict_begins_with_data_and_an_existing_one_ignores_it(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        main = home.environments.default
        for value in (b"first", b"second"):
            item = await here.dicts.create(
                main, "old", Creation.IF_MISSING, data=[(b"k", value), (b"big", bytes(2 * 1024**2))]
            )
            assert await here.dicts.get(item.id, b"k") == b"first"
            assert await here.dicts.get(item.id, b"big") == bytes(2 * 1024**2)

    run(tmp_path, life)


@pytest.mark.parametrize("cache_bytes", [0, GIB])
def test_decisions_are_in_one_order(tmp_path: Path, cache_bytes: int) -> None:
    """Whatever is in memory: of many puts one is first, of many pops one gets it."""

    async def life(home: Home) -> None:
        here = await opened(home, cache_bytes=cache_bytes)
        for round_ in range(20):
            key = b"%d" % (round_ % 3)
            puts = await asyncio.gather(
                *(
                    here.dicts.update(here.dict_id, [(key, b"%d" % n)], if_not_exists=True)
                    for n in range(20)
                )
            )
            assert puts.count(True) == 1
            pops = await asyncio.gather(*(here.dicts.pop(here.dict_id, key) for _ in range(20)))
            assert [v for v in pops if v is not None] == [b"%d" % puts.index(True)]
        assert await here.contents() == {}

    run(tmp_path, life)


@pytest.mark.parametrize("cache_bytes", [0, GIB])
def test_reads_see_what_was_acknowledged(tmp_path: Path, cache_bytes: int) -> None:
    async def life(home: Home) -> None:
        here = await opened(home, cache_bytes=cache_bytes)
        acknowledged = 0

        async def write() -> None:
            nonlocal acknowledged
            for number in range(1, 200):
                if number % 50 == 0:
                    await here.dicts.clear(here.dict_id)
                await here.dicts.update(here.dict_id, [(b"k", b"%d" % number)])
                acknowledged = number

        async def read() -> None:
            while acknowledged < 199:
                before = acknowledged
                value = await here.dicts.get(here.dict_id, b"k")
                assert before % 50 in (0, 49) or int(value or b"0") >= before
                await asyncio.sleep(0)

        await asyncio.gather(write(), read(), read())

    run(tmp_path, life)


@pytest.mark.parametrize("size", [INLINE_BYTES_MAX - 1, INLINE_BYTES_MAX + 1])
def test_long_values(tmp_path: Path, size: int) -> None:
    value = bytes(size - 1) + b"x"

    async def first(home: Home) -> None:
        here = await opened(home)
        await here.dicts.update(here.dict_id, [(b"k", value)])

    async def second(home: Home) -> None:
        here = await opened(home)
        assert len(await here.dicts.file_contents()) == (size > INLINE_BYTES_MAX)
        assert await here.dicts.get(here.dict_id, b"k") == value
        assert await here.contents() == {b"k": value}
        assert await here.dicts.pop(here.dict_id, b"k", "pop 1") == value

    async def third(home: Home) -> None:
        here = await opened(home)
        assert await here.dicts.pop(here.dict_id, b"k", "pop 1") == value
        assert await here.dicts.pop(here.dict_id, b"k", "pop 2") is None
        assert await here.dicts.file_contents() == set()

    run(tmp_path, first, second, third)


def test_a_call_repeated_after_a_restart_has_been_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def first(home: Home) -> None:
        here = await opened(home)
        await here.dicts.update(here.dict_id, [(b"k", b"v")], if_not_exists=True, operation="put")
        assert await here.dicts.pop(here.dict_id, b"k", "pop") == b"v"

    async def second(home: Home) -> None:
        home.clock.offset = 3600  # which says nothing: a clock can be set
        here = await opened(home)
        repeated = [(b"k", b"v")]
        assert await here.dicts.update(here.dict_id, repeated, if_not_exists=True, operation="put")
        assert await here.dicts.pop(here.dict_id, b"k", "pop") == b"v"
        assert await here.dicts.pop(here.dict_id, b"k", "another pop") is None

    async def much_later(home: Home) -> None:
        monkeypatch.setattr("homeport.storage.operations.RETENTION_S", 0.01)
        here = await opened(home)
        async with asyncio.timeout(30):
            while await here.dicts.pop(here.dict_id, b"k", "pop"):
                await asyncio.sleep(0.01)

    run(tmp_path, first, second, much_later)


def test_entries_nobody_uses_go(tmp_path: Path) -> None:
    async def first(home: Home) -> None:
        here = await opened(home)
        await here.dicts.update(here.dict_id, [(b"read", b"1"), (b"forgotten", b"1")])
        home.clock.offset = LIFETIME_S - 10
        assert await here.dicts.get(here.dict_id, b"read") == b"1"
        await home.database.write(lambda _: None)  # the use is noted in the background
        home.clock.offset = LIFETIME_S + TOUCH_S + 10
        assert not await here.dicts.contains(here.dict_id, b"forgotten")
        assert await here.contents() == {b"read": b"1"}
        assert await here.dicts.len(here.dict_id) == 1
        assert await here.dicts.update(here.dict_id, [(b"forgotten", b"2")], if_not_exists=True)

    async def second(home: Home) -> None:
        here = await opened(home)
        # Listing the values was a use, too.
        home.clock.offset = 2 * LIFETIME_S + 2 * TOUCH_S
        assert await here.dicts.prune() == 0
        home.clock.offset += 20
        assert await here.dicts.prune() == 2
        assert await here.contents() == {}

    run(tmp_path, first, second)


def test_a_full_dict_says_so(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home, cache_bytes=0, dict_bytes_max=1000)
        for _ in range(50):  # overwriting does not fill it, even if nothing is in memory
            await here.dicts.update(here.dict_id, [(b"k", bytes(400))])
        await here.dicts.update(here.dict_id, [(b"l", bytes(400))])
        with pytest.raises(ExhaustedError, match="the Dict is full"):
            await here.dicts.update(here.dict_id, [(b"m", bytes(400))])
        assert await here.dicts.len(here.dict_id) == 2
        await here.dicts.pop(here.dict_id, b"k")
        await here.dicts.update(here.dict_id, [(b"m", bytes(400))])

    run(tmp_path, life)


def test_limits() -> None:
    one = [(b"k", b"v")]
    check_updates(one, if_not_exists=True)
    check_updates([(bytes(KEY_BYTES_MAX), bytes(VALUE_BYTES_MAX))], if_not_exists=False)
    check_updates(one * UPDATES_MAX, if_not_exists=False)
    for updates in (
        one * (UPDATES_MAX + 1),
        [(b"k", bytes(VALUE_BYTES_MAX + 1))],
        [(bytes(KEY_BYTES_MAX + 1), b"v")],
    ):
        with pytest.raises(InvalidError, match=r"status = '413'"):
            check_updates(updates, if_not_exists=False)
    with pytest.raises(InvalidError, match="one entry at a time"):
        check_updates(one * 2, if_not_exists=True)


def test_contents_while_others_write(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        stay = [(b"s%05d" % n, b"v") for n in range(3000)]
        await here.dicts.update(here.dict_id, stay)
        seen: list[bytes] = []
        fresh = itertools.count()
        async for key, _ in here.dicts.contents(here.dict_id, with_values=False):
            seen.append(key)
            if len(seen) % 500 == 0:
                await here.dicts.update(here.dict_id, [(b"a%d" % next(fresh), b"")])
                await here.dicts.update(here.dict_id, [(b"z%d" % next(fresh), b"")])
        assert len(seen) == len(set(seen))
        assert {key for key, _ in stay} <= set(seen)

    run(tmp_path, life)


def test_a_deleted_dict_leaves_nothing(tmp_path: Path) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        await here.dicts.update(here.dict_id, [(b"k", bytes(2 * INLINE_BYTES_MAX))])
        await here.dicts.objects.delete(here.dict_id)
        for operation in (
            here.dicts.get(here.dict_id, b"k"),
            here.dicts.pop(here.dict_id, b"k"),
            here.dicts.update(here.dict_id, [(b"k", b"v")]),
            here.dicts.len(here.dict_id),
            here.dicts.clear(here.dict_id),
            here.contents(),
        ):
            with pytest.raises(NotFoundError, match="not found"):
                await operation
        assert await here.dicts.file_contents() == set()

    run(tmp_path, life)


def test_what_failed_to_commit_did_not_happen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def life(home: Home) -> None:
        here = await opened(home)
        await here.dicts.update(here.dict_id, [(b"k", b"v")])
        commit = home.database._commit_group

        def fail(_connection: object, group: list[object], **_: object) -> None:
            def tell() -> None:
                for item in group:
                    item.future.set_exception(OSError("disk full"))  # type: ignore[attr-defined]

            loop.call_soon_threadsafe(tell)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(home.database, "_commit_group", fail)
        outcomes = await asyncio.gather(
            here.dicts.pop(here.dict_id, b"k"),
            here.dicts.get(here.dict_id, b"k"),
            here.dicts.update(here.dict_id, [(b"l", b"v")]),
            here.dicts.get(here.dict_id, b"l"),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [OSError] * 4
        monkeypatch.setattr(home.database, "_commit_group", commit)
        assert await here.dicts.get(here.dict_id, b"k") == b"v"
        assert await here.dicts.get(here.dict_id, b"l") is None
        assert await here.dicts.pop(here.dict_id, b"k") == b"v"

    run(tmp_path, life)


def test_the_cache_is_bounded() -> None:
    cache = EntryCache(bytes_max=10_000)
    for number in range(1000):
        key = b"%d" % number
        cache.put((1, key), Slot(Entry(key, 100, 0.0, "", bytes(100))))
        assert cache.size_bytes <= 10_000
    assert cache.get((1, b"999")) is not None
    assert cache.get((1, b"0")) is None
    for _ in range(1000):
        cache.put((1, b"999"), Slot(None))
    assert 0 < cache.size_bytes <= 10_000
