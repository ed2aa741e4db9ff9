"""A real Homeport in a folder of its own, started as a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from homeport.node.leaks import find_leaks
from homeport.node.runtime.records import INIT_PREFIX, OUTER_PREFIX, find_processes

READY = re.compile(rb"Homeport \S+ is ready at (\S+)")
GVISOR = os.environ.get("HOMEPORT_SANDBOX_RUNTIME") == "runsc"
"""Whether sandboxes of the servers here run under gVisor: so the suites are run with it."""
PLAIN = {"HOMEPORT_SANDBOX_RUNTIME": ""}
"""Sandboxes under the runtime of functions, unless the environment says else: the suites are about
Homeport rather than gVisor, which takes longer."""
START_S = 180.0
STOP_S = 90.0


class Server:
    """``homeport up`` on ``port``, or on a free one; its state in ``home``, its output in ``<home>/up.log``.

    ``plain=False``: what isolates sandboxes is what an installation has that nobody has told.
    """

    def __init__(
        self,
        home: Path,
        environ: dict[str, str] | None = None,
        *,
        port: int = 0,
        plain: bool = True,
    ) -> None:
        self.home = home
        self._port = port
        self.log = home / "up.log"
        self.url = ""
        inherited = {**PLAIN, **os.environ}
        if not plain:
            del inherited["HOMEPORT_SANDBOX_RUNTIME"]
        self._environ = {**inherited, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._variables: dict[str, str] = {}

    def start(self) -> None:
        """Start it and wait until it says that it is ready; fails with the end of its log."""
        mark = self.log.stat().st_size if self.log.exists() else 0
        process = self.begin()
        deadline = time.monotonic() + START_S
        while not (found := READY.search(self.log.read_bytes()[mark:])):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"homeport up did not become ready:\n{self.tail()}")
            time.sleep(0.05)
        self.url = found[1].decode()
        done = self.homeport("env", "--json")
        assert done.returncode == 0, done.stderr
        self._variables = json.loads(done.stdout)

    def begin(self) -> subprocess.Popen[bytes]:
        """Start it and wait for nothing."""
        self.home.mkdir(parents=True, exist_ok=True)
        port = self.url.rpartition(":")[2] or str(self._port)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_homeport("up"), "--home", str(self.home), "--port", port],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                start_new_session=True,
            )
        return self._process

    def stop(self) -> None:
        """Stop it the polite way; whatever is left of it after a minute and a half is killed."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(f"homeport up did not stop:\n{self.tail()}") from None
        assert code in (0, -signal.SIGTERM), f"homeport up ended with {code}:\n{self.tail()}"

    def restart(self) -> None:
        """Stop it and start it again on the same port and folder."""
        self.stop()
        self.start()

    def kill(self, part: str) -> None:
        """SIGKILL the ``server`` or the ``node`` process; the supervisor starts it again."""
        status = json.loads(self.homeport("status", "--json").stdout)
        os.kill(int(status[f"{part}_pid"]), signal.SIGKILL)

    def crash(self) -> None:
        """SIGKILL every process of ours at once. Containers live on until the next start."""
        assert self._process is not None
        status = json.loads(self.homeport("status", "--json").stdout)
        for part in ("node", "server"):
            os.kill(int(status[f"{part}_pid"]), signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Of the server process."""
        return int(json.loads(self.homeport("status", "--json").stdout)["server_pid"])

    def containers(self, kind: str = "") -> set[str]:
        """Ids of the containers whose processes exist: ``ta-…`` of functions, ``bd-…`` of builds."""
        found = {
            line.rpartition(":")[2].rstrip(")")
            for line in find_leaks(self.home)
            if line.startswith("container process")
        }
        return {name for name in found if name.startswith(kind)}

    def inits(self, kind: str = "") -> dict[int, str]:
        """Ids of the same by the pid of their first process inside.

        Not each runtime gives that a name of ours; it is a child then of the process outside.
        """
        ours = self.containers(kind)
        outside = {p: n.rpartition(":")[2] for p, n in find_processes(OUTER_PREFIX).items()}
        inside = {p: n.rpartition(":")[2] for p, n in find_processes(INIT_PREFIX).items()}
        for pid, name in outside.items():
            if name not in inside.values():
                inside |= dict.fromkeys(_children(pid), name)
        return {pid: name for pid, name in inside.items() if name in ours}

    def homeport(
        self, *arguments: str, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run one of our own commands for this home."""
        return subprocess.run(
            [*_homeport("--home"), str(self.home), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self._environ,
        )

    def environment(self) -> dict[str, str]:
        """The variables that ``homeport env`` gives to a client."""
        return self._variables

    def tail(self, lines: int = 40) -> str:
        """The end of the log, for messages."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def server_with(home: Path, environ: dict[str, str], *, port: int = 0) -> Generator[Server]:
    """A server in ``home`` with the settings in ``environ``; nothing of it may be left afterwards."""
    server = Server(home, environ, port=port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
    assert not (found := find_leaks(home)), f"left behind: {found}"


def _homeport(command: str) -> list[str]:
    return [sys.executable, "-m", "homeport.cli.main", command]


def _children(pid: int) -> list[int]:
    """Of all its threads; none once it is gone."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, thread.read_text().split())
    return found
