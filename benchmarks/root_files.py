"""What of a sandbox's start is its root file system, made then or one that waited.

    python benchmarks/root_files.py [--layers 10]

It does what a start does (``runtime/launch.py``) with layers of its own: the directories that are
written to, the generated files, the overlay and its mount.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from homeport.node.runtime.records import remove_tree
from homeport.node.runtime.rootfs import mount_points, write_generated
from homeport.node.runtime.roots import Root
from homeport.node.runtime.stage import Stage

ROUNDS = 100


def root_files_ms(layers: int) -> dict[str, float]:
    """Median milliseconds until the files of a container are there, over ``layers`` layers."""
    with tempfile.TemporaryDirectory(prefix="homeport-bench-") as folder:
        return asyncio.run(_in_a_stage(Path(folder), layers))


async def _in_a_stage(folder: Path, layers: int) -> dict[str, float]:
    lowers = [folder / f"layer-{number}" for number in range(layers)]
    for lower in lowers:
        (lower / "usr" / "bin").mkdir(parents=True)
    stage = Stage(folder / "stage", private=True, threads=1)
    found: dict[str, list[float]] = {"made": [], "waited": []}
    try:
        for _ in range(ROUNDS):
            for name, times in found.items():
                took = await stage.run(partial(_take, stage, folder, lowers, name == "waited"))
                times.append(took)
    finally:
        stage.close()
    return {name: statistics.median(times) for name, times in found.items()}


def _take(stage: Stage, folder: Path, lowers: list[Path], waits: bool) -> float:
    work, upper, place = folder / "upper.work", folder / "upper", folder / "waiting"

    def make(path: Path, upper: Path) -> Root:
        return Root(stage, (*lowers, mount_points(folder / "skeletons", [], [])), path, upper)

    waiting = make(place, place / "upper") if waits else None
    began = time.perf_counter()
    if waiting is None:
        root = make(work, upper)
    else:
        root = waiting
        mount_points(folder / "skeletons", [], [])  # by it a start finds what waits
        assert root.is_current()
        root.move(work, upper)
    write_generated(root.generated, "modal", "10.0.0.2", ["10.0.0.1"], "")
    with stage.root(root.tree):
        took_ms = (time.perf_counter() - began) * 1000
    root.discard()
    remove_tree(upper)
    return took_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=10)
    options = parser.parse_args()
    print(", ".join(f"{name} {ms:.2f} ms" for name, ms in root_files_ms(options.layers).items()))


if __name__ == "__main__":
    main()
