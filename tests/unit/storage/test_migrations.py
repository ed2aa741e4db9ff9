"""The revisions make exactly the tables that the features declare."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from tests.conformance.harness.postgres import PostgreSQL

from homeport.kernel.errors import ConflictError
from homeport.storage.database import metadata
from homeport.storage.dialects import create_engine
from homeport.storage.migrations import migrate


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
