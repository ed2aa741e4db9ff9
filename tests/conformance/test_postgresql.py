"""On PostgreSQL instead of SQLite: Dicts as ``test_dicts`` has them, from programs and containers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.conformance.harness.postgres import PostgreSQL
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.server import Server
from tests.conformance.test_dicts import *  # noqa: F403

from homeport.node import leaks

PROGRAM = "dicts"
pytestmark = pytest.mark.newest


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("on-postgresql")
    with PostgreSQL() as postgres:
        server = Server(home, {"HOMEPORT_DATABASE_URL": postgres.create()})
        server.start()
        try:
            yield server
        finally:
            server.stop()
    assert not (found := leaks.find_leaks(home)), f"left behind: {found}"


@pytest.fixture(scope="module")
def runner(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(server, tmp_path_factory.mktemp("clients"))


def test_there_is_no_sqlite(server: Server) -> None:
    assert not list(server.home.glob("*.db*"))
