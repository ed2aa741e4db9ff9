"""A server that stands by has the database when no other one has, and not before."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from tests.conformance.harness.postgres import PostgreSQL

from homeport.kernel.errors import InvalidError
from homeport.settings import Settings
from homeport.storage.database import Database
from homeport.storage.dialects import await_unlocked, create_engine, lock_holder
from homeport.storage.standby import stand_by

BOUND_S = 60


def test_a_free_database_is_not_waited_for(postgres: PostgreSQL, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=postgres.create("migrated"))
    assert stand_by(settings, grace_s=3600.0) is False
    assert stand_by(settings, grace_s=3600.0) is False  # nor does the wait itself hold it


def test_it_waits_until_the_other_one_is_gone_for_good(
    postgres: PostgreSQL, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = postgres.create("migrated")
    settings = Settings(home=tmp_path, database_url=url)
    outcome: list[bool] = []
    waiting = threading.Thread(target=lambda: outcome.append(stand_by(settings, grace_s=1.0)))

    async def scenario() -> None:
        first = Database(url)
        await first.start()
        waiting.start()
        await _waits_for_the_lock(postgres, url)
        await first.stop()
        again = Database(url)  # it crashed and was started again
        await again.start()
        await _waits_for_the_lock(postgres, url)
        assert not outcome
        await again.stop()
        await asyncio.to_thread(waiting.join, BOUND_S)

    asyncio.run(scenario())
    assert outcome == [True]
    assert "standing by: another server has the database (homeport " in capsys.readouterr().err


def test_a_database_that_is_away_is_waited_for(
    postgres: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeport.storage.standby._RETRY_S", 0.1)
    with PostgreSQL() as other:
        settings = Settings(home=tmp_path, database_url=other.create())
        other.stop("immediate")
        outcome: list[bool] = []
        waiting = threading.Thread(target=lambda: outcome.append(stand_by(settings, grace_s=0.0)))
        waiting.start()
        other.start()
        waiting.join(BOUND_S)
    assert outcome in ([True], [False])  # whether it came while the database was away


def test_it_needs_a_database_that_can_be_shared(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="set database_url to a PostgreSQL"):
        stand_by(Settings(home=tmp_path, standby=True))


def test_the_lock_is_seen_and_awaited_without_being_kept(postgres: PostgreSQL) -> None:
    engine = create_engine(postgres.create("migrated"))
    await_unlocked(engine)
    assert lock_holder(engine) is None
    assert lock_holder(engine) is None
    engine.dispose()


async def _waits_for_the_lock(postgres: PostgreSQL, url: str) -> None:
    import psycopg

    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
        f"(SELECT oid FROM pg_database WHERE datname = '{url.rpartition('/')[2]}')"
    )
    async with asyncio.timeout(BOUND_S):
        while True:
            with psycopg.connect(postgres.url("postgres")) as connection:
                if connection.execute(query.encode()).fetchone() == (1,):
                    return
            await asyncio.sleep(0.05)
