"""Making one layer: from the cache, together with another build, or by doing the work."""

from __future__ import annotations

import asyncio
import json
import posixpath
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.resources import Limits
from homeport.link.messages import VolumeRef
from homeport.node.builder.aptcache import AptDownloads
from homeport.node.builder.bytecode import InstalledBytecode, without_compiling
from homeport.node.builder.context import BuildContext, Selection, content_digest
from homeport.node.builder.copying import CopyPlan, LayerWriter, home_of
from homeport.node.builder.disk import DiskGuard
from homeport.node.builder.errors import BuildError
from homeport.node.builder.fetching import Fetcher
from homeport.node.builder.flights import Emit, Flights
from homeport.node.builder.hostenv import HostBuildEnvironment
from homeport.node.builder.merged import MergedView
from homeport.node.builder.runmounts import (
    CacheDirectories,
    MountPreparer,
    RunMount,
    mounts_digest,
)
from homeport.node.builder.running import entry, run_in_container
from homeport.node.caches import PIP, UV, Caches
from homeport.node.layers import LayerMetadata, LayerStore, layer_key
from homeport.node.runtime.port import (
    Bind,
    ContainerSpec,
    ContainerStartError,
    Runtime,
    RuntimeUnavailableError,
)
from homeport.node.volumes.mounted import ContainerVolumes, remove_link

log = structlog.get_logger(__name__)

_PACKAGE_LISTS = re.compile(r"\b(apt-get|apt)\b[^&|;]*\bupdate\b")
_PACKAGE_LISTS_AGE_S = 86_400
"""A cached ``apt-get update`` of another day is made anew: its lists name packages that are gone."""
_CACHE_ROOT = "/var/cache/homeport"


@dataclass(frozen=True, slots=True)
class RunStep:
    """A RUN, with all that decides its result. ``network`` empty = the builder's setting.

    ``script`` is a program of the instruction's own, to be found at ``script_path``; ``secrets``
    are what ``--mount=type=secret`` can name.
    """

    instruction: str
    argv: tuple[str, ...]
    env: dict[str, str]
    workdir: str
    user: str
    network: str = ""
    mounts: tuple[tuple[RunMount, Selection | None], ...] = ()
    script: str = ""
    script_path: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict[str, str])


class Volumes(Protocol):
    """The volumes of this node (``NodeVolumes``)."""

    async def prepare(self, refs: Sequence[VolumeRef], folder: Path) -> ContainerVolumes: ...


@dataclass(frozen=True, slots=True)
class BuildTools:
    """What every build of a node shares."""

    runtime: Runtime
    layers: LayerStore
    flights: Flights
    host: HostBuildEnvironment
    cache_dir: Path
    clock: Clock
    fetcher: Fetcher
    kept: Caches
    caches: CacheDirectories
    disk: DiskGuard
    bytecode: InstalledBytecode
    apt: AptDownloads
    volumes: Volumes | None = None
    network: str = "nat"


@dataclass(slots=True)
class LayerMaker:
    """Makes the layers of one build. ``salt`` is empty, or unique when the cache must not serve.

    ``volumes`` are mounted while a RUN runs; what is in them decides nothing, as with a cache.
    """

    tools: BuildTools
    context: BuildContext
    builder_version: str
    limits: Limits
    emit: Emit
    salt: str = ""
    volumes: tuple[VolumeRef, ...] = ()
    held: list[str] = field(default_factory=list[str])
    """Layers that must not go while the build goes on."""
    _views: dict[tuple[str, ...], MergedView] = field(
        default_factory=dict[tuple[str, ...], MergedView]
    )

    def view(self, layers: Sequence[str]) -> MergedView:
        """What is in the image after ``layers``."""
        return MergedView([self.tools.layers.path(key) for key in layers])

    @asynccontextmanager
    async def scratch(self) -> AsyncGenerator[Path]:
        """A directory for what an instruction needs while it is carried out."""
        directory = self.tools.layers.new_work()
        try:
            yield directory
        finally:
            await self.tools.layers.discard(directory)

    async def run(self, parents: Sequence[str], step: RunStep) -> str:
        """The layer that ``step`` makes on top of ``parents``."""
        mounts = await asyncio.to_thread(mounts_digest, list(step.mounts), step.secrets)
        key = self._key(
            parents,
            "run",
            json.dumps([step.argv, sorted(step.env.items()), step.workdir, step.user]),
            step.network,
            self._freshness(step),
            *([mounts, step.script] if mounts or step.script else []),
            *(json.dumps([ref.volume_id, ref.path, ref.sub_path]) for ref in self.volumes),
        )
        return await self._ensure(key, lambda emit: self._do_run(key, list(parents), step, emit))

    async def copy(self, parents: Sequence[str], instruction: str, plan: CopyPlan) -> str:
        """The layer that a COPY of ``plan`` makes on top of ``parents``."""
        content = await asyncio.to_thread(content_digest, plan.sources)
        key = self._key(
            parents,
            "copy",
            content,
            json.dumps([plan.destination, plan.owner, plan.mode]),
        )
        return await self._write(key, parents, instruction, lambda writer: writer.copy(plan))

    async def directory(self, parents: Sequence[str], path: str) -> str:
        """The layer that has directory ``path`` on top of ``parents``."""
        key = self._key(parents, "directory", path)

        def make(writer: LayerWriter) -> None:
            writer.make_directory(path)

        return await self._write(key, parents, f"WORKDIR {path}", make)

    # ── doing it ────────────────────────────────────────────────────────────────────────────

    def _key(self, parents: Sequence[str], *parts: str) -> str:
        parent = parents[-1] if parents else ""
        return layer_key(parent, self.builder_version, self.salt, *parts)

    def _freshness(self, step: RunStep) -> str:
        if not any(_PACKAGE_LISTS.search(word) for word in step.argv):
            return ""
        return str(int(self.tools.clock.now() // _PACKAGE_LISTS_AGE_S))

    def hold(self, keys: Sequence[str]) -> None:
        """Keep these layers in the store until ``release``."""
        self.tools.layers.pin(keys)
        self.held.extend(keys)

    def release(self) -> None:
        """The build has ended."""
        self.tools.layers.unpin(self.held)
        self.held.clear()

    async def _ensure(self, key: str, work: Callable[[Emit], Awaitable[None]]) -> str:
        self.hold([key])
        if self.tools.layers.has(key):
            self.emit([entry("   cached\n")])
            return key
        await self.tools.flights.run(key, work, self.emit)
        return key

    async def _write(
        self,
        key: str,
        parents: Sequence[str],
        instruction: str,
        write: Callable[[LayerWriter], None],
    ) -> str:
        async def work(_emit: Emit) -> None:
            directory = self.tools.layers.new_work()
            upper = directory / "upper"
            try:
                await asyncio.to_thread(lambda: write(LayerWriter(self.view(parents), upper)))
                await self._commit(upper, key, parents, instruction)
            finally:
                await self.tools.layers.discard(directory)

        return await self._ensure(key, work)

    async def _commit(
        self, upper: Path, key: str, parents: Sequence[str], instruction: str
    ) -> None:
        metadata = LayerMetadata(
            parent=parents[-1] if parents else "",
            instruction=instruction,
            created_at=self.tools.clock.now(),
        )
        await self.tools.layers.commit(upper, key, metadata)

    async def _do_run(self, key: str, parents: list[str], step: RunStep, emit: Emit) -> None:
        directory = self.tools.layers.new_work()
        upper = directory / "upper"
        preparer = MountPreparer(directory / "mounts", self.tools.caches, step.secrets)
        try:
            view = self.view(parents)
            binds, env = self._surroundings(step, view)
            used = [bind.source.name for bind in binds]
            installs = (
                without_compiling(step.argv, env)
                if binds and not (step.mounts or self.volumes)
                else None
            )
            trees = tuple(self.tools.layers.path(parent) for parent in parents)
            argv = step.argv if binds and not step.mounts else ()
            async with (
                self.tools.kept.use(*used),
                self.tools.apt.use(argv, view, directory / "apt") as downloads,
                preparer.prepare(list(step.mounts)) as mounts,
                self._mounted(directory / "volumes") as volumes,
            ):
                binds = (
                    *binds,
                    *downloads,
                    *mounts.binds,
                    *_script(step, directory),
                    *volumes.binds(),
                )
                spec = ContainerSpec(
                    id=ids.new("bd"),
                    layers=trees,
                    upper=upper,
                    command=installs or step.argv,
                    env={**env, **mounts.env},
                    workdir=step.workdir,
                    user=step.user,
                    hostname="build",
                    limits=self.limits,
                    binds=binds,
                    tmpfs=mounts.tmpfs,
                    overlays=volumes.overlays(),
                    network=step.network or self.tools.network,
                )
                await self._run_spec(spec, emit)
            if installs is not None:
                await self._compile(trees, spec, emit)
            places = [ref.path for ref in self.volumes]
            for path in places:
                remove_link(upper, path)
            for target in (*(bind.target for bind in binds), *mounts.tmpfs, *places):
                _remove_mountpoint(upper, view, target)
            await self._commit(upper, key, parents, step.instruction)
        finally:
            await self.tools.layers.discard(directory)

    @asynccontextmanager
    async def _mounted(self, folder: Path) -> AsyncGenerator[ContainerVolumes]:
        """The build's volumes for one RUN; what it wrote is committed, however it ends."""
        volumes = ContainerVolumes([])
        if self.volumes:
            if self.tools.volumes is None:
                raise BuildError("this node cannot mount volumes")
            volumes = await self.tools.volumes.prepare(self.volumes, folder)
        try:
            yield volumes
            await volumes.finish()
        except Exception:
            await volumes.finish()
            raise
        finally:
            await volumes.close()

    async def _run_spec(self, spec: ContainerSpec, emit: Emit) -> None:
        try:
            finished = await self.tools.disk.run(
                spec.upper,
                lambda: run_in_container(self.tools.runtime, spec, emit, keep_upper=True),
            )
        except (ContainerStartError, RuntimeUnavailableError) as error:
            raise BuildError(f"its container did not start: {error}") from error
        code = finished.exit.returncode
        if code == 0:
            return
        how = f"was killed by signal {-code}" if code < 0 else f"returned exit code {code}"
        if finished.exit.oom_killed:
            how = f"ran out of memory ({finished.exit.memory_limit_mb} MiB allowed)"
        raise BuildError(f"{how}\n{finished.tail}" if finished.tail else how)

    async def _compile(self, trees: tuple[Path, ...], spec: ContainerSpec, emit: Emit) -> None:
        try:
            await self.tools.bytecode.complete(trees, spec.upper, spec, emit)
        except (ContainerStartError, RuntimeUnavailableError) as error:
            raise BuildError(f"its packages could not be compiled: {error}") from error

    def _surroundings(
        self, step: RunStep, view: MergedView
    ) -> tuple[tuple[Bind, ...], dict[str, str]]:
        """Download caches and the host's way to package indexes, for this RUN only."""
        env = {**self.tools.host.environment(view), **step.env}
        env.setdefault("HOME", home_of(step.user, view))
        if step.user not in ("", "0", "root", "0:0", "root:root") or "PIP_CACHE_DIR" in step.env:
            return (), env
        binds: list[Bind] = []
        for variable, name in (("PIP_CACHE_DIR", PIP), ("UV_CACHE_DIR", UV)):
            if variable in step.env:
                continue
            source = self.tools.kept.directory(name)
            source.mkdir(parents=True, exist_ok=True)
            target = posixpath.join(_CACHE_ROOT, name)
            binds.append(Bind(source, target, read_only=False))
            env[variable] = target
        env.setdefault("UV_LINK_MODE", "copy")  # its cache is on another mount: links cannot work
        return tuple(binds), env


def _script(step: RunStep, directory: Path) -> tuple[Bind, ...]:
    """The program that a here-document holds, as a file of the container."""
    if not step.script:
        return ()
    file = directory / "script"
    file.write_text(step.script)
    file.chmod(0o755)
    return (Bind(file, step.script_path),)


def _remove_mountpoint(upper: Path, view: MergedView, target: str) -> None:
    """Take what a mount needed to be mounted on, empty files and directories, out of the layer."""
    path = view.resolve(target)
    while path != "/":
        host = upper / path.lstrip("/")
        if view.find(path, follow=False) is None and not host.is_symlink():
            if host.is_dir() and not any(host.iterdir()):
                host.rmdir()
            elif host.is_file() and path == view.resolve(target) and not host.stat().st_size:
                host.unlink()
        path = posixpath.dirname(path)
