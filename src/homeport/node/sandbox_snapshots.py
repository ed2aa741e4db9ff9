"""A sandbox's files made into an image while it runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import structlog

from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import InvalidError, UnavailableError
from homeport.link.messages import SandboxSnapshot, StartSandbox
from homeport.node.container_images import ImageMount
from homeport.node.layers import SNAPSHOT, LayerMetadata, LayerStore, layer_key, remove_tree
from homeport.node.link import NodeLink
from homeport.node.mounts import Joined
from homeport.node.prepare import Prepared
from homeport.node.runtime.port import RuntimeUnavailableError
from homeport.node.sandbox import Sandbox
from homeport.node.volumes.mounted import remove_link

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ACKNOWLEDGE_S = 60.0
"""How long the server may take to record a snapshot."""
MEMORY_SNAPSHOT_S = 7 * 86400.0
"""How long a memory snapshot is kept."""
_MEMORY = "sn"
_PLATFORM = "__modal"
_STACKED_MAX = 100
"""A snapshot of a mounted image with so many layers is a copy of the whole."""


class Snapshots:
    """Takes snapshots of the sandboxes of one node, into its image layers."""

    def __init__(self, layers: LayerStore, link: NodeLink, clock: Clock) -> None:
        self._layers = layers
        self._link = link
        self._clock = clock
        self._flights = Joined()

    async def take_named(self, sandbox: Sandbox, snapshot_id: str, ttl_s: float) -> str:
        """The image of that snapshot (``snapshot_id`` is the caller's); made at its first call.

        ``ttl_s`` is how long it is wanted, 0 = for ever. Raises ``HomeportError``.
        """
        image_id = ids.derive(ids.IMAGE, "snapshot", sandbox.task_id, snapshot_id)
        await self.take(sandbox, image_id, ttl_s)
        return image_id

    async def take_directory(
        self, sandbox: Sandbox, path: str, snapshot_id: str, ttl_s: float
    ) -> str:
        """As ``take_named``, of the directory ``path`` alone: what is in it is the image's root.

        Raises ``InvalidError`` for what is no directory of the sandbox's own files or of an image
        mounted in it.
        """
        image_id = ids.derive(ids.IMAGE, "directory", sandbox.task_id, snapshot_id)
        await self._flights.run(image_id, self._take_directory(sandbox, path, image_id, ttl_s))
        return image_id

    async def take_memory_named(self, sandbox: Sandbox, key: str) -> str:
        """The memory snapshot of that ``key`` (the caller's), taken at its first call: its id.

        The sandbox has ended then. Raises ``HomeportError``.
        """
        snapshot_id = ids.derive(_MEMORY, sandbox.task_id, key)
        await self.take_memory(sandbox, snapshot_id)
        return snapshot_id

    async def take_memory(self, sandbox: Sandbox, snapshot_id: str) -> None:
        """The same with an id that the server gave."""
        await self._flights.run(snapshot_id, self._take_memory(sandbox, snapshot_id))

    async def _take_memory(self, sandbox: Sandbox, snapshot_id: str) -> None:
        files, memory = layer_key(SNAPSHOT, snapshot_id), layer_key(_MEMORY, snapshot_id)
        if not self._layers.has(memory) or not self._layers.has(files):
            if not sandbox.start.memory_snapshots:
                raise InvalidError(
                    "The sandbox was created without memory snapshots: ask for them with "
                    "_experimental_enable_snapshot=True"
                )
            if sandbox.images.any_mounted:
                raise InvalidError(
                    "There is no memory snapshot of a sandbox while images are mounted in it: "
                    "take them off with unmount_image"
                )
            await self._save(sandbox, files, memory)
        layers = [layer_key("mount", ref.digest) for ref in sandbox.start.mounts]
        await self._report(
            SandboxSnapshot(
                0,
                sandbox.task_id,
                snapshot_id,
                [*layers, files, memory],
                MEMORY_SNAPSHOT_S,
                memory=True,
            )
        )

    async def _save(self, sandbox: Sandbox, files: str, memory: str) -> None:
        """Both parts as layers; the sandbox has ended then."""
        work = self._layers.new_work()
        image = work / "memory"
        image.mkdir()
        try:
            async with sandbox.checkpointed(image) as prepared:
                await self._mount_layers(sandbox.start, prepared)
                await asyncio.to_thread(_clean, prepared.upper, [])
                await self._layers.commit(prepared.upper, files, self._metadata())
                await self._layers.commit(image, memory, self._metadata())
        except OSError as error:
            raise UnavailableError(f"the sandbox's memory cannot be kept: {error}") from error
        finally:
            await self._layers.discard(work)

    async def _take_directory(
        self, sandbox: Sandbox, path: str, image_id: str, ttl_s: float
    ) -> None:
        key = layer_key(SNAPSHOT, image_id)
        directory, mount = await self._open(sandbox, path)
        try:
            if not self._layers.has(key):
                await self._hold_and_commit(
                    sandbox,
                    mount.upper if mount is not None else Path(f"/proc/self/fd/{directory}"),
                    key,
                )
        finally:
            os.close(directory)
        report = SandboxSnapshot(
            0,
            sandbox.account_id,
            image_id,
            [key],
            ttl_s,
            own_base=True,
            base_id=mount.image_id if mount is not None else "",
        )
        await self._report(report)

    async def _open(self, sandbox: Sandbox, path: str) -> tuple[int, ImageMount | None]:
        """The directory, and the mounted image whose root it is."""
        container = sandbox.container
        try:
            root = await container.open_directory("/")
            device = os.fstat(root).st_dev
            os.close(root)
            directory = await container.open_directory(path)
        except OSError as error:
            raise InvalidError(f"{path}: {error.strerror}") from None
        found = os.fstat(directory)
        mount = sandbox.images.at(found.st_dev)
        if found.st_dev != device and mount is None:
            os.close(directory)
            raise InvalidError(
                f"{path} is not among the sandbox's own files (a volume, a bucket or a file "
                "system of the kernel is there): there can be no snapshot of it"
            )
        is_root = False
        if mount is not None:
            try:
                top = await container.open_directory(mount.mounted.path)
            except OSError:
                return directory, None
            is_root = os.path.samestat(os.fstat(top), found)
            os.close(top)
        if is_root and mount is not None and len(mount.layers) < _STACKED_MAX:
            return directory, mount
        return directory, None

    async def keep(self, sandbox: Sandbox, prepared: Prepared) -> None:
        """Make what an ended sandbox left the image that was asked for; failures are logged only.

        Its ``upper`` directory becomes the layer.
        """
        start = sandbox.start
        key = layer_key(SNAPSHOT, start.exit_image_id)
        try:
            layers = await self._mount_layers(start, prepared)
            volumes = [ref.path for ref in start.volumes]
            await asyncio.to_thread(_clean, prepared.upper, volumes)
            await self._layers.commit(prepared.upper, key, self._metadata())
        except (OSError, UnavailableError):
            log.exception("the files of an ended sandbox are lost", task_id=start.task_id)
            return
        self._link.send_sure(
            SandboxSnapshot(
                0, start.task_id, start.exit_image_id, [*layers, key], start.exit_image_s
            )
        )

    async def take(self, sandbox: Sandbox, image_id: str, ttl_s: float) -> None:
        """Make the image ``image_id`` of its files, known to the server when this returns."""
        await self._flights.run(image_id, self._take(sandbox, image_id, ttl_s))

    async def _take(self, sandbox: Sandbox, image_id: str, ttl_s: float) -> None:
        key = layer_key(SNAPSHOT, image_id)
        layers = await self._mount_layers(sandbox.start, sandbox.prepared)
        if not self._layers.has(key):
            await self._capture(sandbox, key)
        await self._report(
            SandboxSnapshot(
                0,
                sandbox.account_id,
                image_id,
                [*layers, key],
                ttl_s,
                own_base=sandbox.account_id != sandbox.task_id,
                base_id=sandbox.image_id,
            )
        )

    async def _report(self, report: SandboxSnapshot) -> None:
        self._link.send_sure(report)
        if not await self._link.taken(report.seq, ACKNOWLEDGE_S):
            raise UnavailableError("the server did not record the snapshot; try again")

    async def _mount_layers(self, start: StartSandbox, prepared: Prepared) -> list[str]:
        """The files that were mounted over the image, as layers that last."""
        paths = prepared.layers[len(start.layers) :]
        keys: list[str] = []
        for ref, path in zip(start.mounts, paths, strict=True):
            key = layer_key("mount", ref.digest)
            if not self._layers.has(key):
                await self._commit(path, key, links=True)
            keys.append(key)
        return keys

    async def _capture(self, sandbox: Sandbox, key: str) -> None:
        volumes = [ref.path for ref in sandbox.start.volumes]
        await self._hold_and_commit(sandbox, sandbox.prepared.upper, key, volumes)

    async def _hold_and_commit(
        self, sandbox: Sandbox, tree: Path, key: str, without: Sequence[str] = ()
    ) -> None:
        container = sandbox.container
        with sandbox.active():
            try:
                await container.freeze()
            except RuntimeUnavailableError as error:
                raise UnavailableError(f"no snapshot can be taken here: {error}") from error
            try:
                await self._commit(tree, key, links=False, without=without)
            finally:
                await container.thaw()

    def _metadata(self) -> LayerMetadata:
        return LayerMetadata(parent="", instruction=SNAPSHOT, created_at=self._clock.now())

    async def _commit(
        self, tree: Path, key: str, *, links: bool, without: Sequence[str] = ()
    ) -> None:
        """A copy of ``tree`` as a layer; ``links``: nobody ever writes to its files."""
        work = self._layers.new_work()
        copy = work / "tree"
        try:
            await asyncio.to_thread(_copy, tree, copy, links)
            await asyncio.to_thread(_clean, copy, without)
            await self._layers.commit(copy, key, self._metadata())
        except (OSError, subprocess.CalledProcessError) as error:
            raise UnavailableError(f"the sandbox's files cannot be copied: {error}") from error
        finally:
            await self._layers.discard(work)


def _copy(tree: Path, copy: Path, links: bool) -> None:
    """With whiteouts, attributes, holes and hard links within, as an overlay needs them."""
    how = (
        "--link" if links and tree.stat().st_dev == copy.parent.stat().st_dev else "--reflink=auto"
    )
    copy.mkdir()
    source = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # what is mounted in the tree is not part of it
        command = ["cp", "-ax", how, "--", f"/proc/self/fd/{source}/.", str(copy)]
        subprocess.run(command, check=True, capture_output=True, pass_fds=[source])
    finally:
        os.close(source)


def _clean(copy: Path, volumes: Sequence[str]) -> None:
    """Take out what belongs to the platform and not to the sandbox's files."""
    remove_tree(copy / _PLATFORM)
    for path in volumes:
        remove_link(copy, path)
