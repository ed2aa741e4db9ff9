"""A long use after which everything is as it was: memory, descriptors, threads, disk.

    make soak SOAK="[--calls 100000] [--sandboxes 2000] [--resolves 500] [--rounds 5] [--rest 0]"

The work is done in equal rounds. What is kept on purpose (results, logs, ended sandboxes, caches) is
bounded and is there after the first; after the others there may be no more. Prints what there was
after each round, exits 1 if anything grew or failed. ``--rest 620`` lets the answers that are kept for
repeated requests expire before the last round, which then has their room.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conformance.harness.server import Server

from homeport.node.leaks import find_leaks

LOAD = Path(__file__).with_name("soak_load.py")
RETENTION_S = 5
SETTLE_S = 20.0
"""After a round: housekeeping comes by twice, and allocators give back."""
SETTINGS = {
    "HOMEPORT_RESULT_RETENTION_S": str(RETENTION_S),
    "HOMEPORT_LOG_RETENTION_S": str(RETENTION_S),
    "HOMEPORT_HOUSEKEEPING_INTERVAL_S": str(RETENTION_S),
}
GROWTH_MAX = {
    "server_rss_mib": 48.0,
    "node_rss_mib": 48.0,
    "server_descriptors": 16,
    "node_descriptors": 64,  # networks that are kept ready come and go
    "server_threads": 8,
    "node_threads": 8,
    "disk_mib": 48.0,
    "processes": 0,
    "mounts": 0,
    "control_groups": 0,
}


def state(server: Server) -> dict[str, float]:
    """What the installation holds now."""
    status = json.loads(server.homeport("status", "--json").stdout)
    found: dict[str, float] = {}
    for part in ("server", "node"):
        process = Path("/proc", str(status[f"{part}_pid"]))
        pages = int((process / "statm").read_text().split()[1])
        found[f"{part}_rss_mib"] = round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
        found[f"{part}_descriptors"] = len(os.listdir(process / "fd"))
        found[f"{part}_threads"] = len(os.listdir(process / "task"))
    found["disk_mib"] = round(sum(disk(server.home).values()), 1)
    # Some wait for their tasks, now more and now fewer: not those.
    leaks = [leak for leak in find_leaks(server.home) if "tp-" not in leak]
    found["processes"] = sum(leak.startswith("container process") for leak in leaks)
    found["mounts"] = sum(leak.startswith("mount") for leak in leaks)
    found["control_groups"] = sum(leak.startswith("control group") for leak in leaks)
    return found


def disk(home: Path) -> dict[str, float]:
    """MiB on disk by the first name under the home; the database without its free pages' log."""
    found: dict[str, float] = {}
    for folder, _, names in os.walk(home):
        for name in names:
            path = Path(folder, name)
            try:
                blocks = path.lstat().st_blocks
            except OSError:
                continue
            top = path.relative_to(home).parts[0]
            found[top] = found.get(top, 0.0) + blocks * 512 / 2**20
    return found


def round_of(environ: dict[str, str], *amounts: int) -> dict[str, int]:
    """Do one; what went wrong."""
    command = [sys.executable, str(LOAD), *map(str, amounts)]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {f"the load ended with {done.returncode}": 1}
    return json.loads(done.stdout.splitlines()[-1])


def soak(server: Server, options: argparse.Namespace) -> bool:
    """Whether everything was right."""
    environ = {**os.environ, **server.environment(), "MODAL_CONFIG_PATH": "/nonexistent"}
    deploy = [sys.executable, "-m", "modal", "deploy", str(LOAD)]
    subprocess.run(deploy, env=environ, check=True, stdout=subprocess.DEVNULL)
    amounts = [n // options.rounds for n in (options.calls, options.sandboxes, options.resolves)]
    states: list[dict[str, float]] = []
    is_right = True
    for number in range(options.rounds):
        if number == options.rounds - 1:
            time.sleep(options.rest)
        began = time.monotonic()
        wrong = round_of(environ, *amounts)
        took = time.monotonic() - began
        time.sleep(SETTLE_S)
        states.append(state(server))
        print(f"round {number + 1}, {took:.0f} s: {json.dumps(states[-1])}", flush=True)
        if wrong:
            is_right = False
            print(f"failed: {json.dumps(wrong, indent=1)}", flush=True)
    first, last = states[0], states[-1]
    for name, bound in GROWTH_MAX.items():
        if last[name] - first[name] > bound:
            is_right = False
            print(f"{name} grew from {first[name]} to {last[name]}")
    print("disk in MiB:", {k: round(v, 1) for k, v in disk(server.home).items()})
    return is_right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--sandboxes", type=int, default=2_000)
    parser.add_argument("--resolves", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rest", type=float, default=0.0, help="seconds before the last round")
    parser.add_argument("--home", type=Path, help="one that has the images, to use and keep")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="homeport-soak-") as folder:
        server = Server(options.home or Path(folder) / "home", SETTINGS)
        server.start()
        try:
            is_right = soak(server, options)
        finally:
            server.stop()
        left = find_leaks(server.home)
    for line in left:
        print(f"left behind: {line}")
    return 0 if is_right and not left else 1


if __name__ == "__main__":
    sys.exit(main())
