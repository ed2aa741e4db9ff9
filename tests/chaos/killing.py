"""A load on a server that is killed again and again.

``HOMEPORT_CHAOS_KILLS`` says how often (in all), ``HOMEPORT_CHAOS_SEED`` repeats a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.conformance.harness.bare import BareServer
from tests.conformance.harness.lossy import PatientProxy
from tests.conformance.harness.server import PLAIN

from homeport.node.leaks import find_leaks

KILLS = int(os.environ.get("HOMEPORT_CHAOS_KILLS", "6"))
BEGIN_S = 180.0
SEED = os.environ.get("HOMEPORT_CHAOS_SEED", "1")


def kill_under_load(
    folder: Path,
    load_program: Path,
    *,
    pauses_s: tuple[float, float],
    end_s: float,
    check: Callable[[BareServer], None] = lambda server: None,
    has_node: bool = False,
    kills: int = KILLS,
    environ: dict[str, str] | None = None,
) -> tuple[dict[str, Any], bool]:
    """What the load saw (its ``seen.json``), and whether a call had to be repeated for it.

    The server is killed after pauses between ``pauses_s``; ``check`` looks at what is left before
    it starts again, and at the end. The load has ``end_s`` seconds to come to its end.
    ``has_node``: containers can run, on a node that lives on; the load says when it has begun.
    ``environ`` is the server's.
    """
    moments = random.Random(SEED)
    server = BareServer(folder / "home", environ)
    server.start()
    log = (folder / "load.log").open("wb")
    try:
        with (
            _node(server) if has_node else contextlib.nullcontext(),
            PatientProxy(int(server.url.rpartition(":")[2])) as proxy,
        ):
            server.reached_by = proxy.url
            load = subprocess.Popen(
                [sys.executable, str(load_program), str(folder), SEED],
                env={**os.environ, **server.environment(), "MODAL_CONFIG_PATH": "/nonexistent"},
                stdout=log,
                stderr=log,
            )
            try:
                if has_node:
                    _wait_for(folder / "begun", load)
                for _ in range(kills):
                    time.sleep(moments.uniform(*pauses_s))
                    server.kill()
                    check(server)
                    server.start()
                (folder / "stop").touch()
                code = load.wait(end_s)
            finally:
                load.kill()
                load.wait()
            assert code == 0, (folder / "load.log").read_text()[-4000:]
            repeated = bool(proxy.repeated)
    finally:
        server.stop()
    assert not (found := find_leaks(server.home)), f"left behind: {found}"
    check(server)
    return json.loads((folder / "seen.json").read_text()), repeated


@contextlib.contextmanager
def _node(server: BareServer) -> Iterator[None]:
    """A node of ``server``."""
    command = [sys.executable, "-m", "homeport.node.main", "--home", str(server.home)]
    with (server.home / "node.log").open("wb") as log:
        node = subprocess.Popen(
            [*command, "--server", server.url],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**PLAIN, **os.environ},
        )
    try:
        yield
    finally:
        node.terminate()
        node.wait(90)


def _wait_for(file: Path, load: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + BEGIN_S
    while not file.exists():
        assert load.poll() is None, (file.parent / "load.log").read_text()[-4000:]
        assert time.monotonic() < deadline, (file.parent / "load.log").read_text()[-4000:]
        time.sleep(0.1)
