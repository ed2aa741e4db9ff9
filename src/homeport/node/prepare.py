"""What a container needs before it starts: layers, mounts, its files, its environment."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from homeport.kernel.errors import NotFoundError, UnavailableError
from homeport.link.messages import MountRef, StartSandbox, StartTask
from homeport.node.buckets import Buckets, ContainerBuckets
from homeport.node.gpus.devices import NONE, GpuChanges, NodeGpus, check_runtime
from homeport.node.isolation import Isolation
from homeport.node.layers import LayerMetadata
from homeport.node.runtime.port import DEFAULT_PATH, Bind, ContainerSpec, Runtime
from homeport.node.snapshot import clean
from homeport.node.volumes.mounted import ContainerVolumes, NodeVolumes, remove_link

CONTROL_DIR = "/__modal/run"
"""Where a container finds its socket and its arguments (beside ``/__modal/deps`` of the mounts)."""
SOCKET_NAME = "worker.sock"
ARGUMENTS_NAME = "args.bin"
PYTHON_PATH = ("/root", "/pkg")
"""User source and the client; before what the image puts there."""


FUNCTION_WORKDIR = "/root"
Start = StartTask | StartSandbox
"""What a container is asked for with."""


class Layers(Protocol):
    """The image layers of this node."""

    def path(self, key: str) -> Path: ...

    def has(self, key: str) -> bool: ...

    def pin(self, keys: Iterable[str]) -> None: ...

    def unpin(self, keys: Iterable[str]) -> None: ...

    async def commit(self, upper: Path, key: str, metadata: LayerMetadata) -> Path: ...


class Mounts(Protocol):
    """The mounts of this node."""

    async def layer(self, digest: str) -> Path: ...


class Bytecode(Protocol):
    """Makes ``__pycache__`` layers for mounts."""

    async def layer(
        self, digest: str, python: str, runtime: Runtime, layers: tuple[Path, ...]
    ) -> Path | None:
        """The layer over mount ``digest`` for ``python``; ``None`` if it could not be made."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything but the pipes. ``folder`` holds the container's own files and its writes."""

    start: Start
    runtime: Runtime
    folder: Path
    layers: tuple[Path, ...]
    volumes: ContainerVolumes
    buckets: ContainerBuckets
    gpus: GpuChanges = NONE
    memory: Path | None = None
    """What it goes on from, if it is restored."""

    @property
    def upper(self) -> Path:
        """What the container writes."""
        return self.folder / "upper"

    @property
    def socket_path(self) -> Path:
        return self.folder / "run" / SOCKET_NAME

    def data(self) -> tuple[Bind, ...]:
        """What it has mounted of data: network file systems, and where volumes and buckets come."""
        directories = (
            Bind(Path(ref.source), ref.path, read_only=False) for ref in self.start.directories
        )
        return (*directories, *self.buckets.binds(), *self.volumes.binds(), *self.gpus.binds)

    def spec(self, start: StartTask, stdout_fd: int, stderr_fd: int) -> ContainerSpec:
        """The function container to start, with its output going to these descriptors."""
        return ContainerSpec(
            id=start.task_id,
            layers=self.layers,
            upper=self.upper,
            command=tuple(start.command),
            env=environment(start),
            workdir=start.workdir or FUNCTION_WORKDIR,
            hostname="homeport",
            limits=start.limits,
            binds=(
                Bind(self.folder / "run", CONTROL_DIR),
                *self.data(),
            ),
            overlays=self.volumes.overlays(),
            trees=self.buckets.trees(),
            tmpfs=self.gpus.tmpfs,
            devices=self.gpus.devices,
            hooks=self.gpus.hooks,
            groups=self.gpus.groups,
            network="none" if start.block_network else "nat",
            stdout_fd=stdout_fd,
            stderr_fd=stderr_fd,
            is_repeated=True,
        )


class Preparer:
    """Prepares containers under ``root`` (one folder a task, deleted with it)."""

    def __init__(
        self,
        root: Path,
        isolation: Isolation,
        layers: Layers,
        mounts: Mounts,
        bytecode: Bytecode | None = None,
        volumes: NodeVolumes | None = None,
        gpus: NodeGpus | None = None,
        buckets: Buckets | None = None,
    ) -> None:
        self._root = root.absolute()
        self._isolation = isolation
        self._layers = layers
        self._mounts = mounts
        self._bytecode = bytecode
        self._volumes = volumes
        self._gpus = gpus
        self._buckets = buckets

    @property
    def layers(self) -> Layers:
        """The image layers of this node."""
        return self._layers

    @property
    def root(self) -> Path:
        """Where the folders of tasks are."""
        return self._root

    async def prepare(self, start: Start) -> Prepared:
        """Raises a ``HomeportError`` that says what is missing. Ends with ``discard``."""
        self._layers.pin(_needed(start))
        try:
            runtime = await self._isolation.runtime(start)
            await self._hold_gpus(start, runtime)
            try:
                return await self._prepare(start, runtime)
            except BaseException:
                self._release_gpus(start)
                raise
        except BaseException:
            self._layers.unpin(_needed(start))
            raise

    async def _hold_gpus(self, start: Start, runtime: Runtime) -> None:
        if not start.gpus:
            return
        if self._gpus is None:
            raise UnavailableError("this node has no GPUs")
        check_runtime(runtime.name)
        await self._gpus.hold(start.gpus)
        # in the start itself: programs that are run in the container later get it from there
        added = self._gpus.environment(start.gpus, start.env, runtime.name)
        start.env = {**start.env, **added}

    def _release_gpus(self, start: Start) -> None:
        if start.gpus and self._gpus is not None:
            self._gpus.release(start.gpus)

    async def _prepare(self, start: Start, runtime: Runtime) -> Prepared:
        layers = self._image_layers(start.layers)
        layers += await self._mount_layers(start, runtime, layers)
        memory = self._memory(start)
        await asyncio.to_thread(_check_directories, start)
        gpus = NONE
        if start.gpus and self._gpus is not None:
            gpus = await asyncio.to_thread(self._gpus.changes, start.gpus, runtime.name)
        folder = self._root / start.task_id
        making = asyncio.ensure_future(asyncio.to_thread(self._make, folder, start))
        try:
            await asyncio.shield(making)
            volumes = await self._prepare_volumes(start, folder / "volumes")
            try:
                buckets = await self._mount_buckets(start)
            except BaseException:
                await volumes.close()
                raise
        except BaseException:
            await asyncio.wait([making])  # the thread goes on: nobody else would delete its folder
            await asyncio.to_thread(shutil.rmtree, folder, True)
            raise
        return Prepared(start, runtime, folder, layers, volumes, buckets, gpus, memory)

    async def adopt(self, prepared: Prepared, start: StartTask) -> Prepared:
        """The same for ``start``, whose container was prepared before it was known.

        Its volumes are not mounted yet. Raises as ``prepare``; then ``prepared`` is as it was.
        """
        arguments = prepared.folder / "run" / ARGUMENTS_NAME
        await asyncio.to_thread(arguments.write_bytes, start.arguments)
        volumes = await self._prepare_volumes(start, prepared.folder / "volumes")
        return replace(prepared, start=start, volumes=volumes)

    async def _prepare_volumes(self, start: Start, folder: Path) -> ContainerVolumes:
        if not start.volumes:
            return ContainerVolumes([])
        if self._volumes is None:
            raise UnavailableError("this node cannot mount volumes")
        return await self._volumes.prepare(start.volumes, folder)

    async def _mount_buckets(self, start: Start) -> ContainerBuckets:
        if not start.buckets:
            return ContainerBuckets([])
        if self._buckets is None:
            raise UnavailableError("this node cannot mount buckets")
        return await self._buckets.mount(start.buckets, start.task_id)

    async def keep(self, start: StartTask, prepared: Prepared, now: float) -> str:
        """Make what the ended container wrote the layer it was to leave; its key.

        The runtime must have left ``upper`` behind. Raises ``OSError``.
        """
        image = prepared.layers[: len(start.layers)]
        upper = prepared.upper
        for ref in start.volumes:
            await asyncio.to_thread(remove_link, upper, ref.path)
        await asyncio.to_thread(clean, upper, image, prepared.layers[len(start.layers) :])
        parent = start.layers[-1] if start.layers else ""
        metadata = LayerMetadata(parent=parent, instruction="run_function", created_at=now)
        await self._layers.commit(upper, start.commit_layer, metadata)
        return start.commit_layer

    async def discard(self, prepared: Prepared) -> None:
        """Delete the task's folder; the runtime removed its own part of it."""
        try:
            await prepared.volumes.close()
            await prepared.buckets.close()
            await asyncio.to_thread(shutil.rmtree, prepared.folder, True)
        finally:
            self._layers.unpin(_needed(prepared.start))
            self._release_gpus(prepared.start)

    def _image_layers(self, keys: list[str]) -> tuple[Path, ...]:
        missing = [key for key in keys if not self._layers.has(key)]
        if missing:
            raise NotFoundError(f"this node does not have image layer {missing[0]}")
        return tuple(self._layers.path(key) for key in keys)

    def _memory(self, start: Start) -> Path | None:
        if isinstance(start, StartTask) or not start.memory_layer:
            return None
        return self._image_layers([start.memory_layer])[0]

    async def _mount_layers(
        self, start: Start, runtime: Runtime, image: tuple[Path, ...]
    ) -> tuple[Path, ...]:
        paths = await asyncio.gather(*(self._mounts.layer(ref.digest) for ref in start.mounts))
        layers: list[Path] = []
        for ref, path in zip(start.mounts, paths, strict=True):
            layers.append(path)
            if isinstance(start, StartTask):
                compiled = await self._compiled(ref, start.python, runtime, (*image, path))
                if compiled is not None:
                    layers.append(compiled)
        return tuple(layers)

    async def _compiled(
        self, ref: MountRef, python: str, runtime: Runtime, layers: tuple[Path, ...]
    ) -> Path | None:
        if not ref.compile or not python or self._bytecode is None:
            return None
        return await self._bytecode.layer(ref.digest, python, runtime, layers)

    def _make(self, folder: Path, start: Start) -> None:
        folder.mkdir(parents=True)
        if isinstance(start, StartTask):
            run = folder / "run"
            run.mkdir()
            (run / ARGUMENTS_NAME).write_bytes(start.arguments)


def _needed(start: Start) -> list[str]:
    """The layers that have to stay while it runs."""
    memory = start.memory_layer if isinstance(start, StartSandbox) else ""
    return [*start.layers, memory] if memory else start.layers


def _check_directories(start: Start) -> None:
    for ref in start.directories:
        if not os.path.isdir(ref.source):
            raise UnavailableError(
                f"the network file system at {ref.path} is the directory {ref.source} of the "
                "server's machine, which this node does not have: share that directory with it "
                "under the same path (by NFS, for example)"
            )


def environment(start: StartTask) -> dict[str, str]:
    """The container's environment; the platform's own keys win over image and secrets."""
    given = start.env
    image_path = [part for part in given.get("PYTHONPATH", "").split(":") if part]
    python_path = [*PYTHON_PATH, *(part for part in image_path if part not in PYTHON_PATH)]
    return {
        "PATH": DEFAULT_PATH,
        "HOME": "/root",
        **given,
        "PYTHONPATH": ":".join(python_path),
        "PYTHONUNBUFFERED": "1",
        "MODAL_IS_REMOTE": "1",
        "MODAL_DISABLE_API_PROXY": "1",
        # A host name here tells the client that routers need not prove who they are: it reaches
        # them through its node (see ``blob_relay``). It does not matter for the socket.
        "MODAL_SERVER_URL": f"unix://localhost{CONTROL_DIR}/{SOCKET_NAME}",
        "MODAL_CONTAINER_ARGUMENTS_PATH": f"{CONTROL_DIR}/{ARGUMENTS_NAME}",
        "MODAL_TASK_ID": start.task_id,
    }
