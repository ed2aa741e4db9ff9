"""Making a base tree leaves nothing of the host in reach when the node is killed meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

BOOTSTRAP = """
import asyncio, sys
from pathlib import Path
from homeport.node.builder.debian import bootstrap, find_suite, host_mirrors
from homeport.node.builder.hostenv import read_host

def emit(entries):
    for entry in entries:
        print(entry.data, end="", flush=True)

suite = find_suite("bookworm")
target = Path(sys.argv[1], "tree")
asyncio.run(bootstrap(suite, [], target, host_mirrors(), read_host(), emit))
"""
END_S = 30.0


@pytest.mark.root
def test_a_killed_bootstrap_leaves_no_process_and_no_mount(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BOOTSTRAP, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        said: list[str] = []
        for line in node.stdout:
            said.append(line)
            if "installing essential" in line:  # /proc and /sys are mounted in the tree by now
                break
        mounted = _mounts_anywhere(tmp_path)
        node.kill()
    assert any(place.endswith("/proc") for place in mounted), "".join(said)
    end = time.monotonic() + END_S
    while (left := [*_mounts_anywhere(tmp_path), *_processes(tmp_path)]) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []


def _mounts_anywhere(below: Path) -> list[str]:
    """Where something is mounted there, in the view of any process."""
    found: set[str] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = (folder / "mountinfo").read_text().splitlines()
        except OSError:
            continue
        found |= {line.split()[4] for line in lines if line.split()[4].startswith(f"{below}/")}
    return sorted(found)


def _processes(below: Path) -> list[str]:
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(below) in word for word in words):
            found.append(" ".join(words))
    return found
