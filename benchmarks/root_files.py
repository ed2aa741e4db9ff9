"""What of a sandbox's start is its root file system: what nothing prepares ahead.

    python benchmarks/root_files.py [--layers 10]

It does what a start does (``runtime/launch.py``) with layers of its own: the directories that are
written to, the generated files, the mount of the overlay.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from homeport.node.runtime.records import remove_tree
from homeport.node.runtime.rootfs import mount_points, write_generated
from homeport.node.runtime.stage import Stage

ROUNDS = 100


def root_files_ms(layers: int) -> float:
    """Median milliseconds until the files of a container are there, over ``layers`` layers."""
    with tempfile.TemporaryDirectory(prefix="homeport-bench-") as folder:
        return asyncio.run(_in_a_stage(Path(folder), layers))


async def _in_a_stage(folder: Path, layers: int) -> float:
    lowers = [folder / f"layer-{number}" for number in range(layers)]
    for lower in lowers:
        (lower / "usr" / "bin").mkdir(parents=True)
    stage = Stage(folder / "stage", private=True, threads=1)
    try:
        return statistics.median(
            [await stage.run(lambda: _make(stage, folder, lowers)) for _ in range(ROUNDS)]
        )
    finally:
        stage.close()


def _make(stage: Stage, folder: Path, lowers: list[Path]) -> float:
    upper, work, generated = (folder / name for name in ("upper", "work", "generated"))
    began = time.perf_counter()
    upper.mkdir()
    work.mkdir(mode=0o700)
    write_generated(generated, "modal", "10.0.0.2", ["10.0.0.1"], "")
    skeleton = mount_points(folder / "skeletons", [], [])
    with stage.root([generated, *lowers, skeleton], upper, work):
        took_ms = (time.perf_counter() - began) * 1000
    for path in (upper, work, generated):
        remove_tree(path)
    return took_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=10)
    options = parser.parse_args()
    print(f"{root_files_ms(options.layers):.2f} ms")


if __name__ == "__main__":
    main()
