"""A small image and a runtime to start containers with, for the runtime suite."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homeport.node.runtime.base import StagedRuntime
from homeport.node.runtime.create import create_runtime
from homeport.node.runtime.port import Container, ContainerSpec, Exit
from homeport.node.runtime.runsc import RunscRuntime

NODE_ID = "no-contract"
PREPARED = "runsc prepared"
PREPARED_ROOT = "bubblewrap prepared"
"""Names for boxes in which a root file system waits before each start, and if it can a container."""


def make_layer(directory: Path) -> Path:
    """A layer with busybox, two users, and nothing else."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    layer = directory / "layer"
    (layer / "bin").mkdir(parents=True)
    shutil.copy(busybox, layer / "bin/busybox")
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for name in names.stdout.split():
        if name != "busybox":
            (layer / "bin" / name).symlink_to("busybox")
    (layer / "etc").mkdir()
    (layer / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nworker:x:1000:1001::/home/worker:/bin/sh\n"
    )
    (layer / "etc/group").write_text("root:x:0:\nworkers:x:1001:\ndisk:x:2000:worker\n")
    (layer / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    return layer


@dataclass
class Result:
    """What a container did."""

    exit: Exit
    output: str
    upper: Path


@dataclass
class Box:
    """A runtime with a folder of its own."""

    runtime: StagedRuntime
    home: Path
    layer: Path
    count: int = 0
    pipes: dict[str, int] = field(default_factory=dict[str, int])

    def spec(self, *command: str, **changes: Any) -> ContainerSpec:
        self.count += 1
        name = changes.get("id", f"ta-{self.count}")
        values: dict[str, Any] = {
            "id": name,
            "layers": (self.layer,),
            "upper": self.home / "uppers" / name,
            "command": command,
            "env": {},
            "network": "none",
        }
        return ContainerSpec(**{**values, **changes})

    def waiting(self) -> frozenset[str]:
        """What is there of containers that wait: their names."""
        return frozenset()

    async def begin(self, spec: ContainerSpec) -> Container:
        """Start one."""
        return await self.runtime.start(spec)

    async def start(self, *command: str, **changes: Any) -> Container:
        """Start a container whose output goes nowhere."""
        return await self.begin(self.spec(*command, **changes))

    async def run(self, *command: str, **changes: Any) -> Result:
        """Run a container to its end and remove it, keeping its upper directory."""
        read, write = os.pipe()
        output = asyncio.create_task(asyncio.to_thread(_read_all, read))
        try:
            spec = self.spec(*command, **changes, stdout_fd=write, stderr_fd=write)
            container = await self.begin(spec)
        finally:
            os.close(write)
        exit = await container.wait()
        await container.remove(keep_upper=True)
        return Result(exit, await output, spec.upper)

    async def sh(self, script: str, **changes: Any) -> Result:
        return await self.run("sh", "-c", script, **changes)


@dataclass
class PreparedBox(Box):
    """One whose containers are started with what waits for them."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def spec(self, *command: str, **changes: Any) -> ContainerSpec:
        return super().spec(*command, **{"is_repeated": True, **changes})

    def waiting(self) -> frozenset[str]:
        return self.runtime.waiting if isinstance(self.runtime, RunscRuntime) else frozenset()

    async def begin(self, spec: ContainerSpec) -> Container:
        async with self.lock:  # each finds what waits for it
            return await self._begin(spec)

    async def _begin(self, spec: ContainerSpec) -> Container:
        runtime = self.runtime
        with contextlib.suppress(FileNotFoundError):  # said by the start
            await runtime.prepare_root(spec)
        rooted = runtime.roots.used
        if not isinstance(runtime, RunscRuntime):
            container = await runtime.start(spec)
        else:
            is_foreseen = spec.network != "host"
            if is_foreseen:
                await runtime.prepare(spec.network)
            adopted = runtime.adopted
            container = await runtime.start(spec)
            assert runtime.adopted - adopted == is_foreseen
        assert runtime.roots.used == rooted + 1
        return container


def _read_all(fd: int) -> str:
    with os.fdopen(fd, "rb") as file:
        return file.read().decode()


@asynccontextmanager
async def open_box(name: str, home: Path, layer: Path) -> AsyncIterator[Box]:
    tool, _, prepared = name.partition(" ")
    runtime = await create_runtime(tool, home / "run", NODE_ID, prepared_max=int(bool(prepared)))
    try:
        yield (PreparedBox if prepared else Box)(runtime, home, layer)
    finally:
        await runtime.close()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something that needs no more help has happened."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
