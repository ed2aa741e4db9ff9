"""Storage is tested on both databases: SQLite, and a PostgreSQL that is started for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.harness.postgres import PostgreSQL

from homeport.storage.database import Database
from homeport.storage.dialects import create_engine
from homeport.storage.migrations import migrate

HERE = Path(__file__).parent
ON_BOTH = {"storage", "blobs", "volumes", "dicts", "queues", "history"}
"""Folders whose tests use most of what the databases differ in; the whole of them costs minutes."""
OF_SQLITE = {"test_checkpoints"}
"""Modules about files that only SQLite has."""
TEMPLATE = "migrated"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of these folders that open a database run twice."""
    path = Path(str(metafunc.module.__file__))
    opens = {"Database", "Home", "open_home"} & vars(metafunc.module).keys()
    is_on_both = path.parent.name in ON_BOTH and path.stem not in OF_SQLITE
    if HERE in path.parents and is_on_both and opens:
        metafunc.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    with PostgreSQL() as postgres:
        postgres.execute(f"CREATE DATABASE {TEMPLATE}")
        engine = create_engine(postgres.url(TEMPLATE))
        migrate(engine)
        engine.dispose()
        yield postgres


@pytest.fixture(autouse=True)
def database_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which database ``Database.sqlite`` opens: for ``postgresql`` one for each path."""
    kind: str = getattr(request, "param", "sqlite")
    if kind == "postgresql":
        postgres: PostgreSQL = request.getfixturevalue("postgres")
        urls: dict[Path, str] = {}

        def opened(path: Path, **_: Any) -> Database:
            if path not in urls:
                urls[path] = postgres.create(TEMPLATE)
            return Database(urls[path])

        monkeypatch.setattr(Database, "sqlite", opened)
    return kind
