"""A builder whose containers are functions of the test."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homeport.kernel.clock import SystemClock
from homeport.kernel.resources import Limits
from homeport.link.messages import BuildImage, ImageConfig, LogEntry
from homeport.node.builder import BuildOutcome, ImageBuilder
from homeport.node.builder.disk import DiskGuard
from homeport.node.builder.hostenv import HostBuildEnvironment
from homeport.node.caches import Caches
from homeport.node.layers import LayerMetadata, LayerStore
from homeport.node.runtime.port import Container, ContainerSpec, Exit, Runtime

Behaviour = Callable[["FakeContainer"], Awaitable[int]]
BASE = "base-layer"


class FakeContainer:
    """A container that is a coroutine; what it says goes to the spec's descriptors."""

    pid = 1
    address = ""
    netns = ""

    def __init__(self, spec: ContainerSpec, behave: Behaviour) -> None:
        self.spec = spec
        self.id = spec.id
        self.killed = False
        self.removed = False
        self._out = os.dup(spec.stdout_fd)
        self._err = os.dup(spec.stderr_fd)
        self._task = asyncio.ensure_future(behave(self))

    @property
    def script(self) -> str:
        return self.spec.command[-1]

    def say(self, text: str, *, error: bool = False) -> None:
        os.write(self._err if error else self._out, text.encode())

    def write(self, path: str, text: str = "") -> None:
        file = self.spec.upper / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    async def wait(self) -> Exit:
        try:
            code = await self._task
        except asyncio.CancelledError:
            code = -9
        self._close()
        return Exit(code, False)

    def signal(self, number: int) -> None:
        self.kill()

    def kill(self) -> None:
        self.killed = not self._task.done()
        self._task.cancel()

    async def remove(self, *, keep_upper: bool = False) -> None:
        self.kill()
        self._close()
        self.removed = True

    def _close(self) -> None:
        for fd in (self._out, self._err):
            if fd >= 0:
                os.close(fd)
        self._out = self._err = -1


class FakeRuntime:
    """Starts ``FakeContainer``s and remembers them."""

    name = "fake"

    def __init__(self) -> None:
        self.containers: list[FakeContainer] = []
        self.behave: Behaviour = succeed

    async def start(self, spec: ContainerSpec) -> Container:
        spec.upper.mkdir(parents=True, exist_ok=True)
        for bind in spec.binds:
            (spec.upper / bind.target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        container = FakeContainer(spec, self.behave)
        self.containers.append(container)
        return container

    async def sweep(self) -> int:
        return 0

    @property
    def scripts(self) -> list[str]:
        """What ran, without the questions for versions."""
        return [c.script for c in self.containers if "homeport-libc" not in c.script]


async def succeed(container: FakeContainer) -> int:
    container.write(f"/ran/{abs(hash(container.script))}", container.script)
    return 0


class Mounts:
    """Context mounts by digest."""

    def __init__(self) -> None:
        self.trees: dict[str, Path] = {}

    async def layer(self, digest: str) -> Path:
        return self.trees[digest]


class FixedClock(SystemClock):
    now_s = 1_000_000.0

    def now(self) -> float:
        return self.now_s


@dataclass
class Workshop:
    """A builder in a folder of its own."""

    home: Path
    runtime: Any = field(default_factory=FakeRuntime)
    mounts: Mounts = field(default_factory=Mounts)
    clock: FixedClock = field(default_factory=FixedClock)
    host: HostBuildEnvironment = field(default_factory=HostBuildEnvironment)
    disk: DiskGuard | None = None
    caches_bytes_max: int = 2**40
    logs: list[LogEntry] = field(default_factory=list[LogEntry])

    def __post_init__(self) -> None:
        self.layers = LayerStore(self.home / "layers")
        runtime: Runtime = self.runtime
        self.kept = Caches(self.home / "builder", self.caches_bytes_max)
        self.builder = ImageBuilder(
            runtime,
            self.layers,
            self.mounts,
            self.home / "builder",
            base_cache=self.home / "bases",
            host=self.host,
            clock=self.clock,
            disk=self.disk,
            kept=self.kept,
        )

    async def base(self, **files: str) -> None:
        """Make layer ``BASE`` with /etc/passwd, /bin/sh and ``files`` (``a__b`` is a/b)."""
        upper = self.layers.new_work() / "upper"
        contents = {
            "etc/passwd": "root:x:0:0::/root:/bin/sh\nworker:x:1000:1001::/home/worker:/bin/sh\n",
            "etc/group": "root:x:0:\nworkers:x:1001:\n",
            "bin/sh": "",
        } | {name.replace("__", "/"): text for name, text in files.items()}
        for name, text in contents.items():
            (upper / name).parent.mkdir(parents=True, exist_ok=True)
            (upper / name).write_text(text)
        await self.layers.commit(
            upper, BASE, LayerMetadata(parent="", instruction="", created_at=0.0)
        )

    def message(self, dockerfile: str, **changes: Any) -> BuildImage:
        values: dict[str, Any] = {
            "build_id": "bd-1",
            "dockerfile": dockerfile,
            "bases": {"base": ([BASE], ImageConfig(env={"A": "1"}, cmd=["sh"]))},
            "context_mount": "",
            "context_files": [],
            "build_args": {},
            "secret_env": {},
            "builder_version": "2025.06",
            "limits": Limits(),
            "timeout_s": 60.0,
        }
        return BuildImage(**{**values, **changes})

    async def build(self, dockerfile: str, **changes: Any) -> BuildOutcome:
        return await self.builder.build(self.message(dockerfile, **changes), self.logs.extend)

    def text(self) -> str:
        return "".join(entry.data for entry in self.logs)

    def tree(self, outcome: BuildOutcome, index: int = -1) -> dict[str, str]:
        """The files of one layer of the image, with their contents."""
        root = self.layers.path(outcome.layers[index])
        return {
            path.relative_to(root).as_posix(): path.read_text()
            for path in sorted(root.rglob("*"))
            if stat.S_ISREG(path.lstat().st_mode)
        }

    def left_over(self) -> list[Path]:
        """What builds left in the store's work directories."""
        return [path for work in self.layers.root.glob(".work.*") for path in work.iterdir()]


def run(home: Path, check: Callable[[Workshop], Awaitable[None]], **changes: Any) -> None:
    """Run ``check`` in a workshop that has the base; nothing may be left in its work directory."""

    async def main() -> None:
        workshop = Workshop(home, **changes)
        await workshop.base()
        for path in workshop.left_over():
            path.rmdir()
        await check(workshop)
        assert workshop.left_over() == []

    asyncio.run(main())
