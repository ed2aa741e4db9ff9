"""A server process without node and supervisor, for what is about the server's own death."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

START_S = 120.0


class BareServer:
    """``python -m homeport.main serve`` on a free port, that it keeps; its state is in ``home``."""

    program: Sequence[str] = ("homeport.main", "serve")

    def __init__(self, home: Path, environ: dict[str, str] | None = None) -> None:
        self.home = home
        self._environ = environ or {}
        self.log = home / "server.log"
        self.reached_by = ""
        """The URL that clients are given, if it is not the server's own."""
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens; fails with the end of its log."""
        self.home.mkdir(parents=True, exist_ok=True)
        record = self.home / "run" / "server.json"
        record.unlink(missing_ok=True)
        command = [sys.executable, "-m", *self.program]
        options = ["--home", str(self.home), "--port", str(self._port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environ},
            )
        deadline = time.monotonic() + START_S
        while not record.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)
        self._port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Stop it the polite way; it must end by itself."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            code = self._process.wait(60)
            assert code == 0, f"it ended with {code}:\n{self.log.read_text()[-4000:]}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return str(self._credentials()["server_url"])

    def environment(self) -> dict[str, str]:
        """The variables for a client."""
        known = self._credentials()
        return {
            "MODAL_SERVER_URL": self.reached_by or str(known["server_url"]),
            "MODAL_TOKEN_ID": str(known["token_id"]),
            "MODAL_TOKEN_SECRET": str(known["token_secret"]),
        }

    def _credentials(self) -> dict[str, object]:
        return tomllib.loads((self.home / "credentials.toml").read_text())
