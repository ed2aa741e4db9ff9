"""A sandbox's files made into an image while it runs."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence
from pathlib import Path

import structlog

from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import UnavailableError
from homeport.link.messages import SandboxSnapshot
from homeport.node.layers import SNAPSHOT, LayerMetadata, LayerStore, layer_key, remove_tree
from homeport.node.link import NodeLink
from homeport.node.mounts import Joined
from homeport.node.runtime.port import RuntimeUnavailableError
from homeport.node.sandbox import Sandbox
from homeport.node.volumes.mounted import remove_link

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ACKNOWLEDGE_S = 60.0
"""How long the server may take to record a snapshot."""
_PLATFORM = "__modal"


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

    async def take(self, sandbox: Sandbox, image_id: str, ttl_s: float) -> None:
        """Make the image ``image_id`` of its files, known to the server when this returns."""
        await self._flights.run(image_id, self._take(sandbox, image_id, ttl_s))

    async def _take(self, sandbox: Sandbox, image_id: str, ttl_s: float) -> None:
        key = layer_key(SNAPSHOT, image_id)
        layers = await self._mount_layers(sandbox)
        if not self._layers.has(key):
            await self._capture(sandbox, key)
        report = SandboxSnapshot(0, sandbox.task_id, image_id, [*layers, key], ttl_s)
        self._link.send_sure(report)
        if not await self._link.taken(report.seq, ACKNOWLEDGE_S):
            raise UnavailableError("the server did not record the snapshot; try again")

    async def _mount_layers(self, sandbox: Sandbox) -> list[str]:
        """The files that were mounted over the image, as layers that last."""
        prepared = sandbox.prepared
        paths = prepared.layers[len(sandbox.start.layers) :]
        keys: list[str] = []
        for ref, path in zip(sandbox.start.mounts, paths, strict=True):
            key = layer_key("mount", ref.digest)
            if not self._layers.has(key):
                await self._commit(path, key, links=True)
            keys.append(key)
        return keys

    async def _capture(self, sandbox: Sandbox, key: str) -> None:
        container, upper = sandbox.container, sandbox.prepared.upper
        volumes = [ref.path for ref in sandbox.start.volumes]
        with sandbox.active():
            try:
                await container.freeze()
            except RuntimeUnavailableError as error:
                raise UnavailableError(f"no snapshot can be taken here: {error}") from error
            try:
                await self._commit(upper, key, links=False, without=volumes)
            finally:
                await container.thaw()

    async def _commit(
        self, tree: Path, key: str, *, links: bool, without: Sequence[str] = ()
    ) -> None:
        """A copy of ``tree`` as a layer; ``links``: nobody ever writes to its files."""
        work = self._layers.new_work()
        copy = work / "tree"
        try:
            await asyncio.to_thread(_copy, tree, copy, links)
            await asyncio.to_thread(_clean, copy, without)
            now = self._clock.now()
            metadata = LayerMetadata(parent="", instruction=SNAPSHOT, created_at=now)
            await self._layers.commit(copy, key, metadata)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UnavailableError(f"the sandbox's files cannot be copied: {error}") from error
        finally:
            await self._layers.discard(work)


def _copy(tree: Path, copy: Path, links: bool) -> None:
    """With whiteouts, attributes, holes and hard links within, as an overlay needs them."""
    how = (
        "--link" if links and tree.stat().st_dev == copy.parent.stat().st_dev else "--reflink=auto"
    )
    command = ["cp", "-a", how, "--", str(tree), str(copy)]
    subprocess.run(command, check=True, capture_output=True)


def _clean(copy: Path, volumes: Sequence[str]) -> None:
    """Take out what belongs to the platform and not to the sandbox's files."""
    remove_tree(copy / _PLATFORM)
    for path in volumes:
        remove_link(copy, path)
