"""Image builds beside ``buildah``: packages on a cached base, nothing changed, the last of ten layers.

    python benchmarks/images.py [--runs 3] [--out FILE]

Needs root; ``buildah`` (Debian: apt-get install buildah) is measured if it is there. Both sides
start from the same tree (Debian and CPython made here), have warm download caches, and install the
same packages: ours as the client's ``uv_pip_install`` says it, buildah with plain pip. Rounds
alternate. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from homeport.kernel.resources import Limits
from homeport.link.messages import BuildImage, ImageConfig, LogEntry
from homeport.node.builder import BuildOutcome, ImageBuilder
from homeport.node.builder.hostenv import IMAGE_CA_BUNDLE, read_host
from homeport.node.builder.oci import write_archive
from homeport.node.layers import LayerStore
from homeport.node.runtime.create import create_runtime

BASE = "python:3.11-slim-bookworm"
PACKAGES = "fastapi numpy pandas"
STEPS = 10
BAR = 1 / 5
RESOLVE_BAR_MS = 20.0


class NoMounts:
    async def layer(self, digest: str) -> Path:
        raise NotImplementedError


class Ours:
    """Our builder in a folder of its own."""

    def __init__(self, builder: ImageBuilder, layers: LayerStore) -> None:
        self.builder = builder
        self.layers = layers
        self.log: list[str] = []

    async def build(
        self, dockerfile: str, base: BuildOutcome | None = None, *, no_cache: bool = False
    ) -> tuple[BuildOutcome, float]:
        """The image, and the seconds it took."""
        bases = {"base": (base.layers, base.config)} if base else {}
        message = BuildImage(
            build_id="bd-bench",
            dockerfile=dockerfile,
            bases=bases,
            context_mount="",
            context_files=[],
            build_args={},
            secret_env={},
            builder_version="2025.06",
            limits=Limits(),
            timeout_s=1800.0,
            no_cache=no_cache,
        )
        self.log.clear()
        began = time.perf_counter()
        outcome = await self.builder.build(message, self._note)
        return outcome, time.perf_counter() - began

    def _note(self, entries: list[LogEntry]) -> None:
        self.log.extend(entry.data for entry in entries)


class Buildah:
    """``buildah bud`` with storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        storage = folder / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/root"\nrunroot = "{folder}/run"\n'
        )
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._environ = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage)}

    def take(self, archive: Path) -> None:
        """Have the base as ``localhost/base``."""
        self._run(
            "pull", "--signature-policy", f"{self.folder}/policy.json", f"oci-archive:{archive}"
        )
        image = self._run("images", "--quiet").split()[0]
        self._run("tag", image, "localhost/base")

    def build(self, dockerfile: str, *, layers: bool) -> float:
        """The seconds a build takes."""
        file = self.folder / "Dockerfile"
        file.write_text(dockerfile)
        began = time.perf_counter()
        self._run(
            *("bud", "--isolation", "chroot", "--pull-never", f"--layers={str(layers).lower()}"),
            *("--signature-policy", f"{self.folder}/policy.json"),
            *("--volume", f"{self.folder}/pip:/root/.cache/pip"),
            *("-f", str(file), "-t", "localhost/made", str(self.folder / "context")),
        )
        return time.perf_counter() - began

    def _run(self, *arguments: str) -> str:
        (self.folder / "context").mkdir(exist_ok=True)
        (self.folder / "pip").mkdir(exist_ok=True)
        done = subprocess.run(
            ["buildah", *arguments], env=self._environ, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise SystemExit(f"buildah {arguments[0]} failed:\n{done.stdout}{done.stderr}"[-4000:])
        return done.stdout

    def close(self) -> None:
        """Undo what it mounted."""
        for line in Path("/proc/mounts").read_text().splitlines():
            place = line.split()[1]
            if place.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "-l", place], capture_output=True)


def ours_text() -> str:
    return (
        "FROM base\nCOPY --from=ghcr.io/astral-sh/uv:latest /uv /.uv/uv\n"
        f"RUN /.uv/uv pip install --python $(command -v python) --compile-bytecode {PACKAGES}\n"
    )


def theirs_text(config: ImageConfig) -> str:
    """The same for buildah, which knows nothing of the host's package index."""
    host = read_host()
    env = dict(host.variables)
    if host.private_cas:
        env["PIP_CERT"] = IMAGE_CA_BUNDLE
    lines = "".join(f"ENV {name}={value}\n" for name, value in env.items() if " " not in value)
    return f"FROM localhost/base\n{lines}RUN python -m pip install --root-user-action ignore {PACKAGES}\n"


def ten_layers(last: str) -> str:
    steps = [f"RUN echo {number} > /step{number}" for number in range(STEPS - 1)]
    return "FROM base\n" + "\n".join([*steps, f"RUN echo {last} > /last"]) + "\n"


async def measure(runs: int, folder: Path) -> dict[str, Any]:
    runtime = await create_runtime("", folder / "run", "no-bench")
    try:
        layers = LayerStore(folder / "layers")
        ours = Ours(ImageBuilder(runtime, layers, NoMounts(), folder / "builder"), layers)
        return await _measure(runs, folder, ours)
    finally:
        await runtime.close()


async def _measure(runs: int, folder: Path, ours: Ours) -> dict[str, Any]:
    base, _ = await ours.build(f"FROM {BASE}\n")
    theirs = await asyncio.to_thread(_theirs, folder, ours, base)
    try:
        return await _compare(runs, ours, base, theirs)
    finally:
        if theirs:
            await asyncio.to_thread(theirs.close)


async def _compare(
    runs: int, ours: Ours, base: BuildOutcome, theirs: Buildah | None
) -> dict[str, Any]:
    text = theirs_text(base.config)
    await ours.build(ours_text(), base, no_cache=True)  # warm download caches
    if theirs:
        await asyncio.to_thread(theirs.build, text, layers=False)
    seconds: dict[str, list[float]] = {"homeport": [], "buildah": []}
    for _ in range(runs):
        seconds["homeport"].append((await ours.build(ours_text(), base, no_cache=True))[1])
        if theirs:
            seconds["buildah"].append(await asyncio.to_thread(theirs.build, text, layers=False))
    found: dict[str, Any] = {"packages": PACKAGES, "seconds": seconds}
    if theirs:
        ratio = statistics.median(seconds["homeport"]) / statistics.median(seconds["buildah"])
        found["ratio"], found["ratio_bar"] = round(ratio, 3), BAR
    found.update(await _cached(ours, base, theirs))
    return found


def _theirs(folder: Path, ours: Ours, base: BuildOutcome) -> Buildah | None:
    if shutil.which("buildah") is None:
        return None
    (folder / "buildah").mkdir()
    buildah = Buildah(folder / "buildah")
    trees = [(key, ours.layers.path(key)) for key in base.layers]
    with tempfile.TemporaryDirectory(dir=folder) as work:
        write_archive(folder / "base.tar", "base", trees, base.config, b"", Path(work))
    buildah.take(folder / "base.tar")
    (folder / "base.tar").unlink()
    return buildah


async def _cached(ours: Ours, base: BuildOutcome, theirs: Buildah | None) -> dict[str, Any]:
    """Nothing changed, and the last of ten layers changed."""
    await ours.build(ten_layers("a"), base)
    unchanged = [(await ours.build(ten_layers("a"), base))[1] for _ in range(5)]
    _, last = await ours.build(ten_layers("b"), base)
    rebuilt = STEPS - ours.log.count("   cached\n")
    found: dict[str, Any] = {
        "unchanged_ms": round(statistics.median(unchanged) * 1000, 2),
        "unchanged_bar_ms": RESOLVE_BAR_MS,
        "last_of_ten_s": round(last, 3),
        "rebuilt_layers": rebuilt,
    }
    if theirs:
        text = ten_layers("a").replace("FROM base", "FROM localhost/base")
        await asyncio.to_thread(theirs.build, text, layers=True)
        seconds = await asyncio.to_thread(theirs.build, text, layers=True)
        found["buildah_unchanged_ms"] = round(seconds * 1000, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="homeport-bench-images-") as folder:
        found = asyncio.run(measure(arguments.runs, Path(folder)))
    found["load"] = os.getloadavg()[0]
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
