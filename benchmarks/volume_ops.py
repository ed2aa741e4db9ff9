"""Volume uploads and downloads: Homeport (durable, verified) against the floor of its protocol.

    python benchmarks/volume_ops.py [--runs 3] [--mib 128] [--files 1000]

As ``storage_ops.py``: the same client process code measures a server that answers at once from
memory (``volume_floor.py``) and Homeport, in turns; the best of the runs counts. Every run uploads
new random contents, from files in memory (``/dev/shm``) where there is such a place.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from storage_ops import Figures, compare, floor, homeport, record

HERE = Path(__file__).parent
MIB = 2**20
SMALL_BYTES = 4096
READS = 200


def measure(mib: int, files: int) -> Figures:
    """Rates of one client."""
    import modal

    found: Figures = {}
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as name:
        for version in (1, 2):
            big, small = Path(name, f"big-{version}"), Path(name, f"small-{version}")
            with big.open("wb") as file:
                for _ in range(mib):
                    file.write(os.urandom(MIB))
            small.mkdir()
            for number in range(files):
                (small / f"{number}").write_bytes(os.urandom(SMALL_BYTES))
            volume = modal.Volume.from_name(
                f"bench-{version}", create_if_missing=True, version=version
            )
            volume.hydrate()
            upload = volume.batch_upload(force=True)
            with rate(found, f"v{version} upload (MiB/s)", mib), upload as batch:
                batch.put_file(big, "big")
            with rate(found, f"v{version} download (MiB/s)", mib):
                size = sum(len(part) for part in volume.read_file("big"))
            assert size == mib * MIB
            upload = volume.batch_upload(force=True)
            with rate(found, f"v{version} small files up (files/s)", files), upload as batch:
                batch.put_directory(small, "small")
            with rate(found, f"v{version} small files down (files/s)", READS):
                for number in range(READS):
                    assert (
                        sum(len(part) for part in volume.read_file(f"small/{number}"))
                        == SMALL_BYTES
                    )
            big.unlink()
    return found


@contextlib.contextmanager
def rate(found: Figures, name: str, count: int) -> Iterator[None]:
    """Note how many a second were done."""
    began = time.perf_counter()
    yield
    found[name] = count / (time.perf_counter() - began)


def client(environ: dict[str, str], mib: int, files: int) -> Figures:
    """One client process against a server."""
    command = [sys.executable, __file__, "--client", "--mib", str(mib), "--files", str(files)]
    environment = {**os.environ, **environ, "MODAL_CONFIG_PATH": "/nonexistent"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(measure(options.mib, options.files)))
        return
    runs: dict[str, list[Figures]] = {"floor": [], "homeport": []}
    least = floor("volume_floor.py")
    with tempfile.TemporaryDirectory() as folder, least as first, homeport(Path(folder)) as second:
        for _ in range(options.runs):
            for name, environ in (("floor", first), ("homeport", second)):
                runs[name].append(client(environ, options.mib, options.files))
    record("volumes", compare(runs), options.runs)


if __name__ == "__main__":
    main()
