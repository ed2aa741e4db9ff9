"""A disk without room: new work is refused with a sentence, what runs goes on, it recovers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.fuzzing import said, sound_call
from tests.conformance.harness.bare import BareServer

pytestmark = pytest.mark.root

DISK_MB = 64
RESERVE_MB = 16


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path, *, leave_mb: float) -> Path:
    """Take the room of ``disk``; the file that has it."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - int(leave_mb * 2**20))
    return filler


def run(server: BareServer, program: str) -> str:
    """What a program of the official client prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"import modal\n{program}"],
        env={**server.environment(), "MODAL_CONFIG_PATH": "/nonexistent", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PUT = """
kept = modal.Dict.from_name("kept", create_if_missing=True)
try:
    for number in range({count}):
        kept[f"{name} {{number}}"] = "x" * {size}
    print("all stored")
except modal.exception.Error as error:
    print(type(error).__name__, error)
    print("stored before:", number)
"""
COUNT = """print(modal.Dict.from_name("kept").len())"""
GET = """print(len(modal.Dict.from_name("kept")["first 0"]))"""


def test_new_content_is_refused_below_the_reserve(disk: Path) -> None:
    server = BareServer(disk / "home", {"HOMEPORT_DISK_RESERVE_MB": str(RESERVE_MB)})
    server.start()
    try:
        assert "all stored" in run(server, PUT.format(name="first", count=3, size=1000))
        filler = fill(disk, leave_mb=RESERVE_MB - 1)
        answer = run(server, PUT.format(name="second", count=3, size=1000))
        assert "ResourceExhausted" in answer
        assert f"{RESERVE_MB} MiB are kept for what runs already" in answer
        assert run(server, GET).strip() == "1000"
        filler.unlink()
        assert "all stored" in run(server, PUT.format(name="third", count=3, size=1000))
        assert not sound_call(server)
    finally:
        server.stop()


@pytest.mark.parametrize("size", [30_000, 1_000_000])
def test_a_disk_that_others_filled_to_the_end(disk: Path, size: int) -> None:
    """The reserve is gone too: still a sentence, nothing that was stored is lost."""
    server = BareServer(disk / "home", {"HOMEPORT_DISK_RESERVE_MB": "0"})
    server.start()
    try:
        assert "all stored" in run(server, PUT.format(name="first", count=1, size=1000))
        filler = fill(disk, leave_mb=0)
        answer = run(server, PUT.format(name="second", count=2000, size=size))
        assert "ResourceExhausted" in answer
        assert "disk of the Homeport server is full" in answer
        assert run(server, GET).strip() == "1000"
        filler.unlink()
        assert "all stored" in run(server, PUT.format(name="third", count=3, size=size))
        server.kill()
        server.start()
        assert run(server, GET).strip() == "1000"
        acknowledged = 1 + int(answer.rpartition("stored before:")[2]) + 3
        assert int(run(server, COUNT)) == acknowledged
        assert not sound_call(server)
        unexpected = [line for line in said(server.log.read_bytes()) if "disk is full" not in line]
        assert unexpected == []
    finally:
        server.stop()
