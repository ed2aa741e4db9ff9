"""``homeport volume fsck``: runs the check as a program of its own, and shows what it found."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from homeport.kernel.errors import InternalError
from homeport.settings import Settings


class Damage(msgspec.Struct, frozen=True):
    """What is wrong with one path of a volume."""

    volume: str
    path: str
    problem: str


class Report(msgspec.Struct, frozen=True):
    """What ``homeport.volumes.fsck`` says. ``size_bytes`` counts each content once."""

    volumes: int
    files: int
    contents: int
    size_bytes: int
    damages: list[Damage]


def examine(settings: Settings, *, quick: bool) -> Report:
    """Look at all volumes of a home. Raises ``InternalError`` with the program's own words."""
    command = [sys.executable, "-m", "homeport.volumes.fsck"]
    command += [str(settings.home), *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise InternalError(words.removeprefix("Error: ") or "the check ended without a report")
    return msgspec.json.decode(done.stdout, type=Report)


def line(damage: Damage) -> str:
    """One line about what is wrong; names cannot do anything to a terminal."""
    return f"{damage.volume}: {_shown(damage.path)}: {damage.problem}"


def _shown(name: str) -> str:
    escaped = (
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    )
    return "".join(escaped)


def summary(report: Report) -> str:
    """One line about what was looked at."""
    return (
        f"{report.volumes} volumes with {report.files} files in {report.contents} contents "
        f"({report.size_bytes} bytes): {len(report.damages) or 'nothing'} damaged"
    )
