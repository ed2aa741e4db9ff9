"""The revisions make exactly the tables that the features declare."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from tests.conformance.harness.postgres import PostgreSQL

from homeport.kernel.errors import ConflictError
from homeport.queues.store import packs
from homeport.storage.database import metadata
from homeport.storage.dialects import create_engine
from homeport.storage.migrations import _config, migrate


def _declare_all_tables() -> None:
    """The server's wiring knows every feature, wherever it declares its tables."""
    importlib.import_module("homeport.main")


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Engine:
    """Of a database with nothing in it."""
    if request.param == "sqlite":
        return create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    postgres: PostgreSQL = request.getfixturevalue("postgres")
    return create_engine(postgres.create())


def test_the_revisions_agree_with_the_declared_tables(engine: sa.Engine) -> None:
    _declare_all_tables()
    migrate(engine)
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_database_of_a_newer_homeport_is_refused(engine: sa.Engine) -> None:
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConflictError, match="newer Homeport"):
        migrate(engine)
    engine.dispose()


def test_items_of_queues_are_kept(engine: sa.Engine) -> None:
    """What an earlier version wrote: rows of one item each."""
    config = _config()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0012")
        columns = ["seq", "queue_id", "partition", "expires_at", "size", "taken", "value"]
        old = sa.table("queue_items", *map(sa.column, columns))
        for seq, taken, value in ((7, 1, b"seven"), (8, 0, b"eight"), (20, 0, b"")):
            row = (seq, "qu-1", b"p", 5.5, len(value), taken, value)
            connection.execute(old.insert().values(dict(zip(columns, row, strict=True))))
        connection.commit()
    migrate(engine)
    query = sa.select(packs).order_by(packs.c.first)
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(query)]
    engine.dispose()
    assert rows == [
        (7, 7, "qu-1", b"p", 5.5, 1, b"", 5, b"seven"),
        (8, 8, "qu-1", b"p", 5.5, 0, b"", 5, b"eight"),
        (20, 20, "qu-1", b"p", 5.5, 0, b"", 0, b""),
    ]
