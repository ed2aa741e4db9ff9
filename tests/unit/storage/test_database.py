"""The writer: group commit, isolation of failures, order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.unit.storage.rows import row

from homeport.calls.store import calls
from homeport.kernel.errors import ExhaustedError
from homeport.storage.database import Database
from homeport.storage.dialects import insert


def _count(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(calls)).scalar_one()


def test_a_thousand_waiters_are_all_durable(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = Database.sqlite(tmp_path / "x.db")
        await database.start()
        statement = insert(calls).on_conflict_do_nothing()
        await asyncio.gather(*(database.append(statement, [row(f"fc-{n}")]) for n in range(1000)))
        assert await database.read(_count) == 1000
        await database.stop()
        again = Database.sqlite(tmp_path / "x.db")
        await again.start()
        assert await again.read(_count) == 1000
        await again.stop()

    asyncio.run(scenario())


def test_a_failing_write_undoes_only_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = Database.sqlite(tmp_path / "x.db")
        await database.start()
        statement = insert(calls).on_conflict_do_nothing()

        def fail(connection: sa.Connection) -> None:
            connection.execute(statement, [row("fc-bad")])
            raise ValueError("no")

        first = database.append(statement, [row("fc-1")])
        failing = asyncio.ensure_future(database.write(fail))
        last = database.append(statement, [row("fc-2")])
        await first
        await last
        with pytest.raises(ValueError, match="no"):
            await failing
        assert await database.read(_count) == 2
        await database.stop()

    asyncio.run(scenario())


def test_a_full_disk_refuses_writes_holds_appends_and_recovers(tmp_path: Path) -> None:
    async def scenario() -> None:
        database = Database.sqlite(tmp_path / "x.db")
        await database.start()
        statement = insert(calls).on_conflict_do_nothing()
        await database.append(statement, [row("fc-before")])
        await database.write(lambda connection: _set_room(connection, 0))
        large = row("fc-large") | {"parent_input_id": "x" * 1_000_000}
        append = database.append(statement, [large])
        with pytest.raises(ExhaustedError, match="disk of the Homeport server is full"):
            await database.write(lambda connection: connection.execute(statement, [large]))
        with pytest.raises(ExhaustedError):
            await database.write(lambda connection: connection.execute(statement, [large]))
        assert not append.done()
        assert await database.read(_count) == 1
        held = [database.append(statement, [row("fc-later")])]
        await database.write(lambda connection: _set_room(connection, 10_000))
        await asyncio.gather(append, *held)
        assert await database.read(_count) == 3
        await database.stop()

    asyncio.run(scenario())


def _set_room(connection: sa.Connection, pages: int) -> None:
    if connection.dialect.name == "postgresql":
        full = "" if pages else "RAISE EXCEPTION 'no room' USING ERRCODE = '53100';"
        for statement in (
            "CREATE OR REPLACE FUNCTION room() RETURNS trigger LANGUAGE plpgsql "
            f"AS $$ BEGIN {full} RETURN NEW; END $$",
            "CREATE OR REPLACE TRIGGER room BEFORE INSERT ON calls "
            "FOR EACH ROW EXECUTE FUNCTION room()",
        ):
            connection.exec_driver_sql(statement)
        return
    used = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    connection.exec_driver_sql(f"PRAGMA max_page_count={used + pages}")
