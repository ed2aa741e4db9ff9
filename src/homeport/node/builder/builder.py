"""Image builds: a Dockerfile in, layers and a configuration out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from homeport.kernel import ids
from homeport.kernel.clock import Clock, SystemClock
from homeport.kernel.resources import Limits
from homeport.link.messages import BuildImage, ImageConfig, LogEntry
from homeport.node.builder import words
from homeport.node.builder.aptcache import AptDownloads
from homeport.node.builder.bases import Bases, default_cache_directory
from homeport.node.builder.bytecode import InstalledBytecode
from homeport.node.builder.context import BuildContext
from homeport.node.builder.disk import DiskGuard, guard_of
from homeport.node.builder.dockerfile import Dockerfile, Instruction, StagePlan, parse_file
from homeport.node.builder.errors import BuildError, StepError
from homeport.node.builder.fetching import Fetcher
from homeport.node.builder.flights import Emit, Flights
from homeport.node.builder.hostenv import HostBuildEnvironment, read_host
from homeport.node.builder.probe import probe_image
from homeport.node.builder.registry import Access, Registry
from homeport.node.builder.runmounts import CacheDirectories
from homeport.node.builder.running import entry
from homeport.node.builder.stage import BuildVariables, Built, Stage, only_flags
from homeport.node.builder.steps import BuildTools, LayerMaker, Volumes
from homeport.node.caches import APT, BYTECODE, DOWNLOADS, Caches, default_bound
from homeport.node.layers import LayerStore
from homeport.node.runtime.port import DEFAULT_PATH, Runtime

log = structlog.get_logger(__name__)

_LOG_INSTRUCTION_CHARACTERS = 300
_PLATFORMS = ("", "linux/amd64", "linux/x86_64")


class Mounts(Protocol):
    """Where the builder gets the files of a context mount from."""

    async def layer(self, digest: str) -> Path:
        """A directory that holds the mount's files under their absolute names, made relative.

        Raises ``HomeportError`` if the server does not give them.
        """
        ...


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """A built image. ``python_version`` is what ``python -VV`` prints, empty without a Python."""

    layers: list[str]
    config: ImageConfig
    python_version: str
    libc_version: str


class ImageBuilder:
    """Builds images on one node. Builds that share steps share the work.

    ``network`` is what RUN steps get (``nat`` or ``host``); ``base_cache`` the directory where
    bootstrapped bases are kept for all installations of this machine's user. ``mirrors`` says
    where the images of a registry (or one of them) come from instead, ``memory_mb`` what a step may
    use if the message does not say, ``kept`` what builds leave below ``work_dir`` for the next one.
    """

    def __init__(
        self,
        runtime: Runtime,
        layers: LayerStore,
        mounts: Mounts,
        work_dir: Path,
        *,
        network: str = "nat",
        base_cache: Path | None = None,
        host: HostBuildEnvironment | None = None,
        clock: Clock | None = None,
        mirrors: Mapping[str, str] | None = None,
        disk: DiskGuard | None = None,
        memory_mb: int = 0,
        volumes: Volumes | None = None,
        kept: Caches | None = None,
    ) -> None:
        self._memory_mb = memory_mb
        self._mounts = mounts
        self._kept = kept or Caches(work_dir, default_bound(layers.root))
        self._tools = BuildTools(
            runtime=runtime,
            layers=layers,
            flights=Flights(),
            host=host if host is not None else read_host(os.environ),
            cache_dir=work_dir / "cache",
            clock=clock or SystemClock(),
            fetcher=Fetcher(self._kept.directory(DOWNLOADS)),
            kept=self._kept,
            caches=CacheDirectories(self._kept),
            disk=disk or guard_of(layers.root),
            bytecode=InstalledBytecode(self._kept.directory(BYTECODE), runtime, layers),
            apt=AptDownloads(self._kept.directory(APT)),
            volumes=volumes,
            network=network,
        )
        registry = Registry(layers, work_dir / "registry", self._kept, self._tools.clock, mirrors)
        cache = LayerStore(base_cache or default_cache_directory())
        self._bases = Bases(self._tools, cache, registry)

    async def build(
        self, message: BuildImage, on_log: Callable[[list[LogEntry]], None]
    ) -> BuildOutcome:
        """Build ``message``. Raises ``BuildError`` naming the instruction that failed.

        Cancelling it ends its containers; nothing is left but the layers that were complete.
        """
        timeout_s = message.timeout_s or None
        try:
            async with asyncio.timeout(timeout_s):
                return await self._build(message, on_log)
        except TimeoutError:
            raise BuildError(f"the build did not end within {timeout_s:.0f} seconds") from None

    async def _build(self, message: BuildImage, emit: Emit) -> BuildOutcome:
        file = parse_file(message.dockerfile)
        maker = await self._maker(message, emit)
        try:
            built = await _Run(file, message, maker, self._bases, self._tools).result()
            path = built.config.env.get("PATH", DEFAULT_PATH)
            probe = await probe_image(self._tools, built.layers, path, message.limits)
        finally:
            maker.release()
            self._kept.look()
        return BuildOutcome(built.layers, built.config, probe.python_version, probe.libc_version)

    async def _maker(self, message: BuildImage, emit: Emit) -> LayerMaker:
        root = await self._mounts.layer(message.context_mount) if message.context_mount else None
        return LayerMaker(
            tools=self._tools,
            context=BuildContext(root, message.context_mount, message.context_files),
            builder_version=message.builder_version,
            limits=_limited(message.limits, self._memory_mb),
            emit=emit,
            salt=ids.new("bd") if message.no_cache else "",
            volumes=tuple(message.volumes),
        )


def _limited(limits: Limits, memory_mb: int) -> Limits:
    """``limits`` with a bound on memory: a step that wants more than the machine has must not
    take the machine down.
    """
    return limits if limits.memory_mb else msgspec.structs.replace(limits, memory_mb=memory_mb)


class _Run:
    """One build: its stages, each built when something needs it."""

    def __init__(
        self,
        file: Dockerfile,
        message: BuildImage,
        maker: LayerMaker,
        bases: Bases,
        tools: BuildTools,
    ) -> None:
        self._file = file
        self._message = message
        self._maker = maker
        self._bases = bases
        self._tools = tools
        self._variables = BuildVariables(dict(message.build_args))
        self._built: dict[int, Built] = {}
        self._external: dict[str, Built] = {}
        self._step = 0

    async def result(self) -> Built:
        """The image of the last stage. Raises ``BuildError``."""
        for instruction in self._file.arguments:
            with self._located(instruction):
                self._variables.declare_global(instruction)
        return await self._stage(self._file.stages[-1])

    async def _stage(self, plan: StagePlan) -> Built:
        if plan.index not in self._built:
            self._built[plan.index] = await self._make(plan)
        return self._built[plan.index]

    async def _make(self, plan: StagePlan) -> Built:
        with self._located(plan.start):
            base = await self._from(plan)
            secrets = dict(self._message.secret_env)
            images = _Earlier(self, plan.index)
            stage = Stage(base, self._variables, secrets, self._maker, images)
            triggers = stage.triggers()
        for instruction in (*triggers, *plan.steps):
            with self._located(instruction):
                await stage.execute(instruction)
        return stage.built

    @contextmanager
    def _located(self, instruction: Instruction) -> Generator[None]:
        """Say that ``instruction`` begins, and whose failure it is if it fails."""
        shown = _shorten(instruction.text)
        self._step += 1
        total = max(self._step, self._file.size)
        self._maker.emit([entry(f"=> Step {self._step}/{total} : {shown}\n")])
        try:
            yield
        except StepError:
            raise
        except BuildError as error:
            raise StepError(f"{shown} failed: {error.message}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise StepError(f"{shown} failed: {error or type(error).__name__}") from error

    async def _from(self, plan: StagePlan) -> Built:
        scope = self._variables.for_from()
        only_flags(plan.start, "platform")
        self._check_platform(words.expand(plan.start.flag("platform"), scope))
        name = words.expand(plan.start.value.split()[0], scope)
        if not name:
            raise BuildError("needs the name of an image")
        if name == "scratch":
            return Built([], ImageConfig())
        stage = self._named(name, plan.index)
        return await self._stage(stage) if stage is not None else await self.image(name)

    def _check_platform(self, platform: str) -> None:
        if platform not in _PLATFORMS:
            raise BuildError(f"images for {platform} cannot be built here, only linux/amd64")

    def _named(self, name: str, before: int) -> StagePlan | None:
        return next((s for s in self._file.stages[:before] if s.name == name.lower()), None)

    async def find(self, name: str, before: int) -> Built:
        """What ``--from=name`` means in the stage of number ``before``."""
        stage = self._named(name, before)
        if stage is None and name.isdecimal():
            if int(name) >= before:
                raise BuildError(f"there is no stage {name} before this one")
            stage = self._file.stages[int(name)]
        return await self._stage(stage) if stage is not None else await self.image(name)

    async def image(self, name: str) -> Built:
        """An image that is not a stage: one the client built earlier, or a registry's."""
        if name in self._message.bases:
            layers, config = self._message.bases[name]
            self._maker.hold(layers)
            missing = [key for key in layers if not self._tools.layers.has(key)]
            if missing:
                raise BuildError(
                    f"layers of {name} are not on this node any more "
                    f"({len(missing)} of {len(layers)}); build it again with force_build=True"
                )
            return Built(list(layers), config)
        if name not in self._external:
            access = Access(self._message.registry_kind, self._message.registry_env)
            base = await self._bases.get(name, self._maker.emit, access)
            self._maker.hold(base.layers)
            self._external[name] = Built(list(base.layers), base.config)
        return self._external[name]


@dataclass(frozen=True, slots=True)
class _Earlier:
    """The images a stage can copy from."""

    run: _Run
    before: int

    async def find(self, name: str) -> Built:
        return await self.run.find(name, self.before)


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= _LOG_INSTRUCTION_CHARACTERS:
        return line
    return line[: _LOG_INSTRUCTION_CHARACTERS - 1] + "…"
