"""The database's log is copied while the server runs, and stays short."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from homeport.storage.checkpoints import LONG_BYTES, SHORT_BYTES
from homeport.storage.database import Database
from homeport.storage.operations import operations

ROW_BYTES = 100_000


async def fill(database: Database, first: int, count: int) -> None:
    for number in range(first, first + count):
        row = {"id": number, "name": f"{number}", "answer": bytes(ROW_BYTES)}
        await database.append(sa.insert(operations), [row])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def test_the_log_is_copied_beside_the_writer(tmp_path: Path) -> None:
    file, log = tmp_path / "x.db", tmp_path / "x.db-wal"

    async def scenario() -> None:
        database = Database.sqlite(file)
        await database.start()
        await fill(database, 1, 300)
        await until(lambda: file.stat().st_size > 10 * ROW_BYTES)
        assert log.stat().st_size < LONG_BYTES
        await database.stop()

    asyncio.run(scenario())
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*) FROM operations").fetchone() == (300,)


def test_a_log_that_a_reader_kept_long_is_cut_when_it_has_gone(tmp_path: Path) -> None:
    file, log = tmp_path / "x.db", tmp_path / "x.db-wal"

    async def scenario() -> None:
        database = Database.sqlite(file)
        await database.start()
        await fill(database, 1, 1)
        reader = sqlite3.connect(file, isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM operations").fetchone() == (1,)
        await fill(database, 2, 800)
        assert log.stat().st_size > LONG_BYTES
        assert reader.execute("SELECT count(*) FROM operations").fetchone() == (1,)
        reader.close()
        number = 1000
        async with asyncio.timeout(60):
            while log.stat().st_size > SHORT_BYTES:
                await fill(database, number, 20)
                number += 20
        await database.stop()

    asyncio.run(scenario())
