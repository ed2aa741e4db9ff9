"""The official client in its versions, each in a virtual environment of its own."""

from __future__ import annotations

import fcntl
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from uv import find_uv_bin

VERSIONS = ("1.0.5", "1.2.6", "1.3.5", "1.4.3", "1.5.4", "1.6.4")
"""One release of each generation, oldest first."""
PYTHON = "3.11"
EXTRAS = ("python-dotenv",)
"""What programs of the suite need besides; added to environments that are there already."""
TYPER_PINS = ("typer<0.21", "click<8.2")
"""Clients before 1.4 have a CLI on typer; with its newer releases every command exits with 1."""


@dataclass(frozen=True, slots=True)
class Client:
    """One installed release of the client."""

    version: str
    python: Path
    """The interpreter of its environment."""

    @property
    def release(self) -> tuple[int, ...]:
        return release(self.version)

    @property
    def yes(self) -> list[str]:
        """The option that answers the CLI's question whether one is sure; older ones do not ask."""
        return ["--yes"] if self.release >= (1, 4) else []

    def __str__(self) -> str:
        return self.version


def release(version: str) -> tuple[int, ...]:
    """``1.2.6`` as numbers, for comparisons."""
    return tuple(int(part) for part in version.split("."))


def cache() -> Path:
    """Where environments are kept between runs."""
    named = os.environ.get("HOMEPORT_TEST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "homeport" / "test-clients"


def install(version: str) -> Client:
    """The client of that version, installed once per machine.

    Raises ``subprocess.CalledProcessError`` when it cannot be had from the package index.
    """
    root = cache()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{version}-py{PYTHON.replace('.', '')}"
    client = Client(version, folder / "bin" / "python")
    done = folder / ".homeport-ready"
    with (root / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            pins = TYPER_PINS if client.release < (1, 4) else ()
            _uv("venv", "--clear", "--python", PYTHON, str(folder))
            _uv(
                "pip",
                "install",
                "--python",
                str(client.python),
                f"modal=={version}",
                "pytest",
                *pins,
            )
            done.touch()
        more = folder / ".homeport-extras"
        if not more.exists() or more.read_text() != " ".join(EXTRAS):
            _uv("pip", "install", "--python", str(client.python), *EXTRAS)
            more.write_text(" ".join(EXTRAS))
    return client


def _uv(*arguments: str) -> None:
    subprocess.run([find_uv_bin(), "--quiet", *arguments], check=True)
