"""Published packages that use sandboxes, as they are, against a real server (``make corpus``)."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.conformance.harness.clients import cache
from tests.conformance.harness.server import Server, server_with
from uv import find_uv_bin

from homeport.pythons import host_pythons

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
MINOR = "3.12"
"""The series of Python that all the packages take."""
RUN_S = 600.0

Run = Callable[..., str]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all packages; afterwards nothing of it may be left."""
    home = Path(os.environ.get("HOMEPORT_TEST_HOME") or tmp_path_factory.mktemp("homeport"))
    with server_with(home, {}) as server:
        yield server


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Run:
    """Runs a command of an environment with those packages; what it printed, if it succeeded."""

    def work(
        packages: Sequence[str], command: str, *arguments: str, codes: Sequence[int] = (0,)
    ) -> str:
        folder = environment(packages)
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        own = {"HOME": str(tmp_path), "MODAL_CONFIG_PATH": str(tmp_path / "modal.toml")}
        done = subprocess.run(
            [str(folder / "bin" / command), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**kept, **own, "PYTHONDONTWRITEBYTECODE": "1", **server.environment()},
            cwd=tmp_path,
            timeout=RUN_S,
        )
        assert done.returncode in codes, done.stdout[-6000:] + done.stderr[-6000:]
        return done.stdout

    return work


def environment(packages: Sequence[str]) -> Path:
    """Where these packages are installed, once a machine; from the package index, unmodified."""
    root = cache() / "corpus"
    root.mkdir(parents=True, exist_ok=True)
    folder = root / "+".join(packages).replace("[", "-").replace("]", "").replace("==", "-")
    with (root / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".homeport-ready").exists():
            _uv("venv", "--clear", "--python", _python(), str(folder))
            _uv("pip", "install", "--python", str(folder / "bin" / "python"), *packages)
            (folder / ".homeport-ready").touch()
    return folder


def _python() -> str:
    for found in asyncio.run(host_pythons()):
        if found.minor == MINOR:
            return str(found.prefix / "bin" / f"python{MINOR}")
    return MINOR  # uv gets one


def _uv(*arguments: str) -> None:
    subprocess.run([find_uv_bin(), "--quiet", *arguments], check=True)
