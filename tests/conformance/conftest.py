"""The conformance suite: unmodified clients, a real server, real containers.

``pytest tests/conformance`` runs the oldest and the newest client; ``--all-clients`` each
generation; ``--client 1.2.6`` (repeatable) just that one. ``--postgresql`` has the server that the
suites share work on one. ``--record`` keeps which RPCs the clients really made in ``proven.json``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.harness.clients import VERSIONS, Client, install, release
from tests.conformance.harness.postgres import PostgreSQL
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import Server, server_with

HERE = Path(__file__).parent
PROVEN = HERE / "proven.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--client", action="append", default=[], help="client version to run with")
    group.addoption("--all-clients", action="store_true", help="run with each client generation")
    group.addoption("--postgresql", action="store_true", help="on PostgreSQL instead of SQLite")
    group.addoption("--record", action="store_true", help="write proven.json")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "since(version): needs a client of at least this version")
    config.addinivalue_line("markers", "newest: runs with the newest client only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "client" in metafunc.fixturenames:
        chosen = _chosen(metafunc.config)
        if metafunc.definition.get_closest_marker("newest"):
            chosen = chosen[-1:]
        metafunc.parametrize("client", chosen, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:  # the first test of a program waits for all of it
            item.add_marker(pytest.mark.timeout(900))
    items.sort(key=lambda item: "recovery" in item.path.name)


def _chosen(config: pytest.Config) -> tuple[str, ...]:
    named = config.getoption("--client", default=[])
    if named:
        return tuple(sorted(named, key=release))
    return (
        VERSIONS
        if config.getoption("--all-clients", default=False)
        else VERSIONS[:: len(VERSIONS) - 1]
    )


@pytest.fixture(autouse=True)
def _since(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("since")
    if marker and "client" in request.fixturenames:
        client: Client = request.getfixturevalue("client")
        if client.release < release(marker.args[0]):
            pytest.skip(f"came with client {marker.args[0]}")


@pytest.fixture(scope="session")
def client(request: pytest.FixtureRequest) -> Client:
    """One release of the official client."""
    return install(request.param)


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server all tests of a session share. Afterwards nothing of it may be left."""
    home = Path(os.environ.get("HOMEPORT_TEST_HOME") or tmp_path_factory.mktemp("homeport"))
    recorded = home / "recorded-rpcs.json"
    environ = {
        "HOMEPORT_RECORD_RPCS": str(recorded),
        "HOMEPORT_ABANDONED_CALL_S": "1",
        "HOMEPORT_WEB_WAIT_S": "4",
    }
    on_postgresql = request.config.getoption("--postgresql", default=False)
    with PostgreSQL() if on_postgresql else contextlib.nullcontext() as database:
        if database is not None:
            environ["HOMEPORT_DATABASE_URL"] = database.create()
        with server_with(home, environ) as server:
            yield server
    if request.config.getoption("--record", default=False):
        _merge(recorded)


def _merge(recorded: Path) -> None:
    """Add what this run recorded to ``proven.json`` (runs of several clients may go on at once)."""
    with PROVEN.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        proven = json.loads(file.read() or "{}")
        for method, versions in json.loads(recorded.read_text()).items():
            known = {*proven.get(method, []), *versions} & {*VERSIONS}
            proven[method] = sorted(known, key=release)
        file.truncate(0)
        json.dump({k: v for k, v in proven.items() if v}, file, indent=2, sort_keys=True)
        file.write("\n")


@pytest.fixture(scope="session")
def runner(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Runs programs and commands of a client."""
    return Runner(server, tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="session")
def waiting_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """The same with a server whose node keeps containers waiting (``templates_max``)."""
    environ = {"HOMEPORT_TEMPLATES_MAX": "8"}
    with server_with(tmp_path_factory.mktemp("waiting"), environ) as server:
        yield Runner(server, tmp_path_factory.mktemp("waiting-clients"))


@pytest.fixture
def checks(request: pytest.FixtureRequest, runner: Runner, client: Client) -> Checks:
    """What the program named by the test module's ``PROGRAM`` reported under this client."""
    return runner.checks(client, request.module.PROGRAM)
