"""What can go wrong under a running ``homeport up``, made to go wrong."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from tests.conformance.harness.postgres import PostgreSQL
from tests.conformance.harness.server import Server

from homeport.node.leaks import run_directories
from homeport.node.runtime.records import find_processes, init_name, run_token

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
DISK_MB = 8192
LEFT_MB = 100
"""Of a full disk; less than what the server keeps for what runs."""
_KILLS_MAX, _WINDOW_S = 4, 61.0
"""``homeport up`` gives up on a part that crashes more often: so much is not disturbed."""
DEADLY = frozenset(
    {
        "kill the node",
        "kill a container",
        "kill everything",
        "pause the node until it counts as gone",
        "lose what the link says",
    }
)
"""After these there may be containers that are gone, with what only they knew."""


class Clock:
    """The time of day as the processes of a server see it, if started with ``environ``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0.0)
        self.environ = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: float) -> None:
        """Be that far from the true time from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+.1f}")
        new.replace(self._file)


class Disk:
    """A file system of its own at ``folder``, to be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        image = self.folder.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(DISK_MB * 2**20)
        self.folder.mkdir()
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(self.folder)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)
        self.folder.with_suffix(".img").unlink()

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Hardly any room."""
        filler = self.folder / "filler"
        space = os.statvfs(self.folder)
        try:
            with filler.open("wb") as file:
                free = space.f_bavail * space.f_frsize - LEFT_MB * 2**20
                os.posix_fallocate(file.fileno(), 0, max(free, 1))
            yield
        finally:
            filler.unlink()


class Disturbances:
    """Seeded disturbances of ``server``; ``happened`` says which there were, in order."""

    def __init__(
        self,
        server: Server,
        seed: str,
        clock: Clock,
        disk: Disk,
        database: PostgreSQL | None = None,
    ) -> None:
        self._server = server
        self._database = database
        self._clock = clock
        self._disk = disk
        self._choice = random.Random(f"{seed} disturbances")
        self._kills: deque[float] = deque()
        self.happened: list[str] = []
        self._kinds: dict[str, Callable[[], None]] = {
            "kill the server": lambda: self._kill("server"),
            "kill the node": lambda: self._kill("node"),
            "kill a container": self._kill_container,
            "kill everything": self._kill_everything,
            "pause the server": lambda: self._pause("server", (0.5, 4.0)),
            "pause the node": lambda: self._pause("node", (0.5, 4.0)),
            "pause the node until it counts as gone": lambda: self._pause("node", (12.0, 15.0)),
            "cut the link": lambda: self._cut("reject with tcp reset", (0.2, 1.0)),
            "lose what the link says": lambda: self._cut("drop", (2.0, 14.0)),
            "set the clock": lambda: self._clock.jump(self._choice.uniform(-300.0, 300.0)),
            "slow down the server's disk": self._slow_down,
            "fill the disk": self._fill,
        }
        self._weights = [3, 3, 2, 1, 2, 2, 1, 3, 2, 2, 2, 1]
        if database is not None:
            self._kinds["kill the database"] = self._kill_database
            self._weights.append(2)

    @property
    def deadly(self) -> int:
        """How often containers may have died of it."""
        return sum(kind in DEADLY for kind in self.happened)

    def next(self) -> None:
        """Wait a little, then let something go wrong."""
        time.sleep(self._choice.uniform(0.5, 5.0))
        kind = self._choice.choices(list(self._kinds), self._weights)[0]
        self.happened.append(kind)
        self._kinds[kind]()

    def set_clock(self, seconds: float) -> None:
        """The last one: the server is to live by that clock from now on.

        It begins anew: a kernel tells its timers that the clock was set, a faked clock does not.
        """
        self._clock.jump(seconds)
        self.happened.append("kill the server")
        with self._part("server") as pid:
            os.kill(pid, signal.SIGKILL)

    def _kill(self, part: str) -> None:
        if self._may_kill():
            with self._part(part) as pid:
                os.kill(pid, signal.SIGKILL)

    def _may_kill(self) -> bool:
        now = time.monotonic()
        while self._kills and now - self._kills[0] > _WINDOW_S:
            self._kills.popleft()
        if len(self._kills) >= _KILLS_MAX:
            self.happened[-1] += " (not again so soon)"
            return False
        self._kills.append(now)
        return True

    def _kill_database(self) -> None:
        """PostgreSQL ends at once, with what it has acknowledged; the server ends for it."""
        assert self._database is not None
        if self._may_kill():
            self._database.stop("immediate")
            time.sleep(self._choice.uniform(0.0, 4.0))
            self._database.start()

    def _kill_everything(self) -> None:
        self._server.crash()
        self._kills.clear()
        self._server.start()

    def _kill_container(self) -> None:
        tokens = [run_token(folder) for folder in run_directories(self._server.home)]
        kinds = ("ta-", "tp-")  # those that waited keep their names
        prefixes = [init_name(token, kind) for token in tokens for kind in kinds]
        inside = sorted(find_processes(*prefixes))
        if inside:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._choice.choice(inside), signal.SIGKILL)

    def _pause(self, part: str, seconds: tuple[float, float]) -> None:
        pause = self._choice.uniform(*seconds)
        with self._part(part) as pid:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(pause)
            os.kill(pid, signal.SIGCONT)

    def _slow_down(self) -> None:
        """Each write and flush of the server takes 20 ms longer."""
        pause = self._choice.uniform(2.0, 6.0)
        delay = "fdatasync,fsync,pwrite64:delay_enter=20000"
        with self._part("server") as pid:
            words = ["timeout", f"{pause:.1f}", "strace", "-qq", "-f", "-o", "/dev/null"]
            subprocess.run([*words, "-p", str(pid), "-e", f"inject={delay}"])

    def _fill(self) -> None:
        with self._disk.full():
            time.sleep(self._choice.uniform(1.0, 5.0))

    def _cut(self, verdict: str, seconds: tuple[float, float]) -> None:
        """Nothing comes through the connections that the node has to the server now."""
        pause = self._choice.uniform(*seconds)
        with self._part("node") as pid:
            ports = ", ".join(_ports(pid, int(self._server.url.rpartition(":")[2])))
            if not ports:
                return
            table = f"inet homeport_chaos_{os.getpid()}"
            rules = [f"tcp {end} {{ {ports} }} {verdict}" for end in ("sport", "dport")]
            lines = ["type filter hook output priority 0", *rules]
            text = f"table {table} {{ chain out {{\n{chr(10).join(lines)}\n}}\n}}"
            try:
                subprocess.run(["nft", text], check=True)
                time.sleep(pause)
            finally:
                subprocess.run(["nft", f"delete table {table}"], check=True)

    @contextlib.contextmanager
    def _part(self, part: str) -> Iterator[int]:
        """Its process, waited for while it is just starting; nothing happens if it ends by itself."""
        while not (pid := self._pid(part)):
            time.sleep(0.1)
        try:
            yield pid
        except ProcessLookupError:
            self.happened[-1] += " (was not there)"

    def _pid(self, part: str) -> int:
        """0 while there is none."""
        status = json.loads(self._server.homeport("status", "--json").stdout)
        return int(status.get(f"{part}_pid") or 0)


def _ports(pid: int, server_port: int) -> list[str]:
    """Local ports of the connections that process has to the server."""
    listed = subprocess.run(
        ["ss", "-Htnp", "state", "established", f"( dport = :{server_port} )"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    mine = [line.split() for line in listed.splitlines() if f"pid={pid}," in line]
    return [re.sub(r".*:", "", columns[2]) for columns in mine]
