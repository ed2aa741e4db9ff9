"""On PostgreSQL instead of SQLite: Dicts as ``test_dicts`` has them, from programs and containers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.conformance.harness.postgres import PostgreSQL
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.server import Server, server_with
from tests.conformance.test_dicts import *  # noqa: F403

PROGRAM = "dicts"
pytestmark = pytest.mark.newest


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with PostgreSQL() as postgres:
        environ = {"HOMEPORT_DATABASE_URL": postgres.create()}
        with server_with(tmp_path_factory.mktemp("on-postgresql"), environ) as server:
            yield server


@pytest.fixture(scope="module")
def runner(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(server, tmp_path_factory.mktemp("clients"))


def test_there_is_no_sqlite(server: Server) -> None:
    assert not list(server.home.glob("*.db*"))
