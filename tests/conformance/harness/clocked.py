"""A server and a node of its own whose schedules go by a clock that the test sets."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from homeport.cli.instance import health
from homeport.kernel.logs import configure_logging
from homeport.main import serve
from homeport.settings import load

from .bare import START_S, BareServer
from .server import PLAIN

OFFSET = "clock-offset"
"""File in the home folder: how many seconds the clock is ahead of the machine's."""


class ClockedServer(BareServer):
    """A ``BareServer`` with a node. Its clock starts at the machine's time."""

    program = ("tests.conformance.harness.clocked",)

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._node: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        super().start()
        if self._node is None:
            with (self.home / "node.log").open("ab") as log:
                command = [sys.executable, "-m", "homeport.node.main"]
                options = ["--home", str(self.home), "--server", self.url]
                self._node = subprocess.Popen(
                    [*command, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**PLAIN, **os.environ},
                )
        deadline = time.monotonic() + START_S
        while not (health(self.url) or {}).get("nodes"):
            log = (self.home / "node.log").read_text()
            assert time.monotonic() < deadline, f"the node did not come:\n{log[-4000:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._node is not None:
            self._node.terminate()
            self._node.wait(60)
        super().stop()

    def set_clock(self, at: float) -> None:
        """Have the schedules believe that it is ``at`` (Unix seconds)."""
        file = self.home / OFFSET
        temporary = file.with_suffix(".tmp")
        temporary.write_text(str(at - time.time()))
        temporary.replace(file)
        os.kill(self.pid, signal.SIGUSR1)


class _OffsetClock:
    """The machine's time and an offset from a file, that SIGUSR1 has it read again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._set = asyncio.Event()
        self._offset = 0.0
        self.read()

    def read(self) -> None:
        if self._file.exists():
            self._offset = float(self._file.read_text())
        self._set.set()

    def now(self) -> float:
        return time.time() + self._offset

    async def reached(self, when: float) -> None:
        self._set.clear()
        try:
            async with asyncio.timeout(min(max(0.0, when - self.now()), 1e6)):
                await self._set.wait()
        except TimeoutError:
            pass


@click.command()
@click.option("--home", type=click.Path(path_type=Path))
@click.option("--port", type=int)
def main(home: Path, port: int) -> None:
    settings = load(home, port=port)
    configure_logging(settings.log_level, settings.log_format)

    async def run() -> None:
        clock = _OffsetClock(home / OFFSET)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, clock.read)
        await serve(settings, wall_clock=clock)

    asyncio.run(run())


if __name__ == "__main__":
    main()
