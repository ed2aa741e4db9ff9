from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

STAND_INS = Path(__file__).with_name("stand_ins.py")


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not seen: {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Up:
    """A ``homeport up`` with stand-ins for server and node, as a process."""

    def __init__(self, folder: Path, **plan: Any) -> None:
        self.home = folder / "home"
        (self.home / "run").mkdir(parents=True)
        self._events = folder / "events"
        self._events.touch()
        self.port = free_port()
        file = folder / "plan.json"
        file.write_text(
            json.dumps(
                {"home": str(self.home), "port": self.port, "events": str(self._events), **plan}
            )
        )
        self.process = subprocess.Popen([sys.executable, STAND_INS, "up", file])

    def events(self) -> list[str]:
        return self._events.read_text().splitlines()

    def expect(self, text: str) -> None:
        wait_for(lambda: any(text in line for line in self.events()), f"{text} in {self._events}")

    def pid_of(self, name: str) -> int:
        """The pid of the last start of ``name``."""
        starts = [line for line in self.events() if line.startswith(f"{name} start")]
        return int(starts[-1].split()[-1])

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def clean_up(self) -> None:
        self.process.kill()
        self.process.wait()
        for line in self.events():
            words = line.split()
            if words[1:2] == ["start"] and is_alive(int(words[2])):
                os.kill(int(words[2]), signal.SIGKILL)


@pytest.fixture
def start_up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(**plan: Any) -> Up:
        started.append(Up(tmp_path, **plan))
        return started[-1]

    yield start
    for one in started:
        one.clean_up()
