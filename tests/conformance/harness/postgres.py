"""A PostgreSQL of its own for tests: a cluster in a folder, run by an unprivileged user."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

USER = "homeport"
_NOBODY = 65534
_BINARIES = Path("/usr/lib/postgresql")


class PostgreSQL:
    """Started in ``with``, gone with all its databases at the end.

    Its texts are ordered as people do, not by code points: what relies on the latter shows here.
    ``port`` stays the same when it is stopped and started.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="homeport-pg-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._databases: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._folder.chmod(0o700)
        if os.geteuid() == 0:
            os.chown(self._folder, _NOBODY, _NOBODY)
        options = ["-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        self._run("initdb", *options, "--locale-provider=icu", "--icu-locale=en-US")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        options = f"-k {self._folder} -p {self.port} -c listen_addresses=127.0.0.1"
        options += " -c max_connections=200 -c shared_buffers=32MB -c fsync=off"
        self._run("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def create(self, template: str = "template1") -> str:
        """A new database; its URL."""
        name = f"t{secrets.token_hex(8)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://{USER}:none@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside of a transaction."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        command = [_binary(program), "-D", str(self._folder / "data"), *arguments]
        if os.geteuid() == 0:
            ids = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
            command = ["setpriv", *ids, *command]
        output = self._folder / "output"
        with output.open("wb") as file:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd="/", timeout=120
            )
        assert done.returncode == 0, output.read_text()


def _binary(name: str) -> str:
    found = shutil.which(name)
    if found is not None:
        return found
    newest = sorted(_BINARIES.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    assert newest, f"{name} of PostgreSQL is missing: scripts/setup tests"
    return str(newest[-1])
