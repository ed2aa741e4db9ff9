"""Two servers on one database: the one that stands by takes over under a client that is at work."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.postgres import PostgreSQL
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.s3 import ObjectStore
from tests.conformance.harness.server import Server
from tests.conformance.test_object_store import BUCKET, settings_of
from tests.conformance.test_recovery import nothing_is_lost

from homeport.node.leaks import find_leaks

pytestmark = pytest.mark.newest
KEYS = ("credentials.toml", "secret.key", "blob.key", "router.key", "signing.key")
AUTHORITY = ("ca.pem", "ca.key")
BOUND_S = 60.0


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    (tmp_path / "s3").mkdir()
    with PostgreSQL() as postgres, ObjectStore(tmp_path / "s3") as store:
        store.create(BUCKET)
        database = {"HOMEPORT_DATABASE_URL": postgres.create(), "HOMEPORT_STANDBY": "true"}
        yield settings_of(store.url) | database


def wait_for(server: Server, word: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while word not in (server.log.read_text() if server.log.exists() else ""):
        assert time.monotonic() < deadline, server.tail()
        time.sleep(0.05)


def test_the_one_that_stands_by_takes_over(
    environ: dict[str, str], client: Client, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # the address that stays, whoever has it
    first = Server(tmp_path / "first", environ, port=port)
    second = Server(tmp_path / "second", environ, port=port)
    with contextlib.ExitStack() as stack:
        first.start()
        stack.callback(first.stop)  # which ends it while it stands by, in the end
        second.home.mkdir()
        for name in (*KEYS, *AUTHORITY):
            shutil.copy(first.home / name, second.home / name)
        taking_over = threading.Thread(target=second.start)
        taking_over.start()
        stack.callback(second.stop)
        wait_for(second, "standing by: another server has the database")
        found = second.homeport("status")
        assert "standing by" in found.stdout, found
        (tmp_path / "clients").mkdir()
        started = Runner(first, tmp_path / "clients").start(client, "recovery.py")
        started.wait_for(lambda output: "well on its way" in output)
        first.crash()
        nothing_is_lost(started)
        taking_over.join(BOUND_S)
        assert second.homeport("status").returncode == 0
        first.begin()
        wait_for(first, "standing by: another server has the database")
    for server in (first, second):
        assert not find_leaks(server.home)
