"""What is PostgreSQL's alone: one server a database, lost connections, what its texts cannot have."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.conformance.harness.postgres import PostgreSQL
from tests.unit.storage.rows import row

from homeport.calls.store import calls
from homeport.kernel.errors import ConflictError, InvalidError, UnavailableError
from homeport.settings import Settings
from homeport.storage import dialects, probe
from homeport.storage.database import Database
from homeport.storage.dialects import create_engine, insert

_INSERT = insert(calls).on_conflict_do_nothing()


def names(connection: sa.Connection) -> list[str]:
    return list(connection.execute(sa.select(calls.c.call_id).order_by(calls.c.call_id)).scalars())


def test_a_second_server_is_refused_until_the_first_is_gone(
    postgres: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialects, "_LOCK_WAIT_S", 0.0)
    url = postgres.create("migrated")

    async def scenario() -> None:
        first = Database(url)
        await first.start()
        with pytest.raises(ConflictError, match=r"another Homeport server works on .*\(homeport "):
            await Database(url).start()
        await first.append(_INSERT, [row("fc-1")])
        await first.stop()
        second = Database(url)
        await second.start()
        assert await second.read(names) == ["fc-1"]
        await second.stop()

    asyncio.run(scenario())


def test_a_lost_connection_is_told_once_and_readers_recover(postgres: PostgreSQL) -> None:
    url = postgres.create("migrated")
    lost = threading.Event()

    async def scenario() -> None:
        database = Database(url, on_lost=lost.set)
        await database.start()
        await database.append(_INSERT, [row("fc-1")])
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{url.rpartition('/')[2]}'"
        )
        database.append(_INSERT, [row("fc-2")])
        assert await asyncio.to_thread(lost.wait, 60)
        found: list[str] = []
        for _ in range(10):  # each connection of the pool is found dead once
            with contextlib.suppress(UnavailableError):
                found = await database.read(names)
        assert found == ["fc-1"]
        await database.stop()

    asyncio.run(scenario())


def test_the_character_0_is_replaced(postgres: PostgreSQL) -> None:
    async def scenario() -> None:
        database = Database(postgres.create("migrated"))
        await database.start()
        await database.append(_INSERT, [row("fc-\0")])
        await database.append(_INSERT, [row("fc-\0"), row("fc-after")])
        assert await database.read(names) == ["fc-after", "fc-␀"]
        await database.stop()

    asyncio.run(scenario())


def test_texts_are_ordered_by_code_point(postgres: PostgreSQL) -> None:
    async def scenario() -> None:
        database = Database(postgres.create("migrated"))
        await database.start()
        await database.append(_INSERT, [row(name) for name in ("a", "B", "a/b", "a.b", "Z", "ä")])
        assert await database.read(names) == ["B", "Z", "a", "a.b", "a/b", "ä"]
        await database.stop()

    asyncio.run(scenario())


def test_what_fails_alone_does_not_take_its_neighbours_with_it(postgres: PostgreSQL) -> None:
    async def scenario() -> None:
        database = Database(postgres.create("migrated"))
        await database.start()
        bad = {**row("fc-bad"), "created_at": "no number"}
        results = await asyncio.gather(
            database.append(_INSERT, [row("fc-1")]),
            database.append(_INSERT, [bad]),
            database.append(_INSERT, [row("fc-2")]),
            return_exceptions=True,
        )
        assert isinstance(results[1], Exception)
        assert await database.read(names) == ["fc-1", "fc-2"]
        await database.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["mysql://host/x", "not a url", "postgresql+other://h/x"])
def test_other_databases_are_refused_without_showing_the_url(url: str) -> None:
    with pytest.raises(InvalidError, match="database_url has to be postgresql://") as caught:
        create_engine(url)
    assert url not in caught.value.message


@pytest.mark.parametrize("user", ["homeport", "nobody"])
def test_doctor_looks_at_it(postgres: PostgreSQL, tmp_path: Path, user: str) -> None:
    url = postgres.create().replace("homeport:none", f"{user}:hidden")
    checks = asyncio.run(probe.probe(Settings(home=tmp_path, database_url=url)))
    assert [check.name for check in checks] == ["database"]
    assert "hidden" not in checks[0].found + checks[0].fix
    if user == "homeport":
        assert checks[0].state == "ok"
        assert checks[0].found.startswith("PostgreSQL ")
    else:
        assert checks[0].state == "failed"
        assert 'role "nobody" does not exist' in checks[0].fix
