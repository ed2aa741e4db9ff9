"""What of Homeport still exists on this machine: for tests, and for doctor after a crash.

``python -m homeport.node.leaks [HOME]`` prints it and exits 1 if there is anything.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from homeport.node import netlink
from homeport.node.cgroups import DEFAULT_ROOT, all_groups
from homeport.node.network import INTERFACE_PREFIX, TABLE_PREFIX, interface_names
from homeport.node.runtime.records import (
    INIT_PREFIX,
    NETWORK_TAG,
    OUTER_PREFIX,
    find_processes,
    run_token,
)

_INTERFACE: Final = re.compile(rf"^{INTERFACE_PREFIX}[0-9a-f]{{6}}\d+$")
_TABLE: Final = re.compile(rf"^{TABLE_PREFIX}[0-9a-f]{{6}}$")
_STAGE: Final = re.compile(r"/stage/\d+/(root|sys)$")
_MODULES: Final = (b"homeport.main", b"homeport.node.main", b"homeport.cli.main")


def find_leaks(home: Path | None = None) -> list[str]:
    """One sentence for each process, mount, control group, interface, firewall table that exists.

    With ``home`` only what can be told to belong to that installation's node; without, everything
    of any Homeport on the machine.
    """
    folders = None if home is None else run_directories(home)
    tags = None if folders is None else _tags(folders)
    found = [*_containers(folders), *_services(home), *_uploads(home), *_mounts(home)]
    found += [f"control group {path}" for path in all_groups(DEFAULT_ROOT) if _is_group(path, tags)]
    for name in interface_names():
        if _INTERFACE.match(name) and (tags is None or name[len(INTERFACE_PREFIX) :][:6] in tags):
            found.append(f"network interface {name}")
    for name in _tables():
        if _TABLE.match(name) and (tags is None or name.removeprefix(TABLE_PREFIX) in tags):
            found.append(f"nftables table ip {name}")
    return found


def run_directories(home: Path) -> list[Path]:
    """Where nodes with their state under ``home`` keep what they run.

    What is there may go meanwhile: unlike a glob, a walk does not mind.
    """
    return [Path(folder) for folder, _, files in os.walk(home.absolute()) if NETWORK_TAG in files]


def _tags(folders: list[Path]) -> set[str]:
    """The names that the nodes of these run directories use."""
    found: set[str] = set()
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            found.add((folder / NETWORK_TAG).read_text().strip())
    return found


def _containers(folders: list[Path] | None) -> Iterator[str]:
    tokens = None if folders is None else set(map(run_token, folders))
    for pid, name in find_processes(INIT_PREFIX, OUTER_PREFIX).items():
        if tokens is None or name.split(":")[1] in tokens:
            yield f"container process {pid} ({name})"


def _services(home: Path | None) -> Iterator[str]:
    wanted = os.fsencode(home.absolute()) if home is not None else None
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-m" not in words or not any(module in words for module in _MODULES):
            continue
        if wanted is None or wanted in words:
            yield f"process {entry} ({b' '.join(words).decode(errors='replace').strip()})"


def _uploads(home: Path | None) -> Iterator[str]:
    """What still uploads to a bucket for a container that has ended (``node/buckets.py``)."""
    inside = b"" if home is None else os.fsencode(home.absolute()) + b"/"
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        places = [word for name, word in itertools.pairwise(words) if name == b"--cache-dir"]
        if any(word.startswith(inside) and b"/node/buckets/" in word for word in places):
            yield f"upload to a bucket by process {entry}"


def _mounts(home: Path | None) -> Iterator[str]:
    inside = str(home.absolute()) + "/" if home is not None else ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = line.split()[4].replace("\\040", " ")
        ours = place.startswith(inside) if inside else bool(_STAGE.search(place))
        if ours:
            yield f"mount {place}"


def _is_group(path: Path, tags: set[str] | None) -> bool:
    return tags is None or bool(tags & set(path.parts))


def _tables() -> list[str]:
    try:
        return netlink.table_names()
    except OSError:
        return []


def main() -> int:
    """The command; returns its exit code."""
    home = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    found = find_leaks(home)
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
