"""The volumes of one container: mounted, committed, reloaded, given back."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from homeport.kernel.errors import ConflictError, HomeportError, NotFoundError, UnavailableError
from homeport.kernel.ids import VOLUME_CHANGE, new
from homeport.link.messages import VolumeRef
from homeport.link.volumes import FILE, VolumeCommit
from homeport.node.layers import remove_tree
from homeport.node.runtime.port import Bind, Container, ContainerStartError, Overlay
from homeport.node.volumes.layers import Snapshot, VolumeLayers
from homeport.node.volumes.sending import Sender
from homeport.node.volumes.source import VolumeSource
from homeport.node.volumes.upper import Mark, difference

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PLACE: Final = "/__modal/volumes"
"""Volumes are mounted at ``<PLACE>/<id>``: the client looks there for who has files open."""
OPEN_FILES: Final = "there are open files preventing the operation"
"""Clients up to 1.2 compare the message with exactly this, later ones look for it."""
BACKGROUND_S: Final = 5.0
"""How often what a container wrote is committed without being asked."""
_SCAN_SHARE: Final = 20.0
"""A volume in which looking for changes takes long is looked at so much less often."""
FINAL_S: Final = 600.0
"""How long an ended container's last changes wait for a server that does not answer."""
_FINAL_PAUSE_S: Final = 2.0


def remove_link(upper: Path, path: str) -> None:
    """A volume's link belongs to the container, not to the layer that it leaves."""
    link = upper / path.lstrip("/")
    if link.is_symlink() and os.readlink(link).startswith(PLACE + "/"):
        link.unlink()


def gate(folder: Path, ref: VolumeRef) -> Bind:
    """Where a volume will be mounted in a container that is started before it is known.

    ``folder`` is what ``NodeVolumes.prepare`` will be given for that container.
    """
    path = folder / ref.volume_id / "gate"
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)
    return Bind(path, f"{PLACE}/{ref.volume_id}")


class MountedVolume:
    """One volume in one container. ``folder`` is its own directory on the node's disk."""

    def __init__(
        self,
        ref: VolumeRef,
        folder: Path,
        snapshot: Snapshot,
        layers: VolumeLayers,
        source: VolumeSource,
    ) -> None:
        self.ref = ref
        self._folder = folder
        self._snapshot = snapshot
        self._layers = layers
        self._source = source
        self._known: dict[str, Mark] = {}
        self._turn = 0
        self._lock = asyncio.Lock()
        self.scan_s = 0.0
        """How long the last look for changes took."""
        self._make()

    # ── what the container gets ─────────────────────────────────────────────────────────────

    @property
    def target(self) -> str:
        return f"{PLACE}/{self.ref.volume_id}"

    def bind(self) -> Bind:
        """What is seen in its place while it is reloaded: an empty directory nobody can write."""
        return Bind(self._folder / "gate", self.target)

    def overlay(self) -> Overlay:
        """The mount."""
        layers = self._snapshot.layers
        if self.ref.read_only:
            # an overlay without an upper directory needs two
            layers = (self._folder / "gate", *layers)
        return Overlay(
            self.target,
            self.ref.path,
            layers,
            None if self.ref.read_only else self._upper,
            self._upper.with_name(self._upper.name + ".work"),
            self.ref.sub_path,
        )

    @property
    def _upper(self) -> Path:
        return self._folder / f"upper-{self._turn}"

    def _make(self) -> None:
        """A fresh upper directory with its work directory."""
        for path in (self._folder / "gate", self._upper):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o755)
        self._make_work()

    def _make_work(self) -> None:
        work = self.overlay().work
        remove_tree(work)  # the kernel refuses one that was used with other options
        work.mkdir(mode=0o700)

    # ── commit ──────────────────────────────────────────────────────────────────────────────

    async def commit(self) -> None:
        """Have the server record what changed. Raises ``HomeportError``."""
        if self.ref.read_only:
            return
        async with self._lock:
            await self._commit()

    async def _commit(self) -> bool:
        """Whether anything had changed."""
        began = time.monotonic()
        lowers = self._snapshot.layers[::-1]
        found = await asyncio.to_thread(difference, self._upper, lowers, self._known)
        self.scan_s = time.monotonic() - began
        if not found:
            self._known = found.marks
            return False
        sender = Sender(self._upper, self._source)
        entries = await sender.send(found.found, found.marks)
        changes = VolumeCommit(
            new(VOLUME_CHANGE), self._snapshot.revision, found.trees, found.removed, entries
        )
        await self._source.commit(self.ref.volume_id, changes)
        for path in sender.unsettled:
            found.marks[path] = (FILE,)  # what it was, but unlike anything it can be
        self._known = found.marks
        return True

    # ── reload ──────────────────────────────────────────────────────────────────────────────

    async def reload(self, container: Container) -> None:
        """Show the newest committed state; what was changed here is committed first.

        Raises ``ConflictError`` if a process of the container uses the volume, ``HomeportError``
        if the server does not answer; then the container sees what it saw before.
        """
        async with self._lock:
            if not self.ref.read_only:
                await self._commit()
            newer = await self._layers.acquire(self.ref.volume_id)
            is_mounted = True
            try:
                is_mounted = not await container.unmount(self.target)
                if is_mounted:
                    raise ConflictError(OPEN_FILES)
                # nobody can write any more, but somebody may have since the first look
                while not self.ref.read_only and await self._commit():
                    newest = await self._layers.acquire(self.ref.volume_id)
                    await self._layers.release(newer)
                    newer = newest
            except BaseException:
                await self._layers.release(newer)
                if not is_mounted:
                    await asyncio.to_thread(self._make_work)
                    await container.mount(self.overlay())
                raise
            await self._replace(newer, container)

    async def refresh(self, container: Container) -> None:
        """Show the newest committed state, if that is not what is seen. Raises as ``reload``."""
        newest = await self._layers.acquire(self.ref.volume_id)
        await self._layers.release(newest)
        if newest.revision != self._snapshot.revision:
            await self.reload(container)

    async def _replace(self, newer: Snapshot, container: Container) -> None:
        older, upper = self._snapshot, self._upper
        self._snapshot = newer
        self._turn += 1
        self._known = {}
        await asyncio.to_thread(self._make)
        await container.mount(self.overlay())
        await asyncio.to_thread(_remove, upper)
        await self._layers.release(older)

    async def close(self) -> None:
        """Give the layers back; the container is gone."""
        await self._layers.release(self._snapshot)


class ContainerVolumes:
    """All volumes of one container. ``folder`` is deleted by who made it."""

    def __init__(self, volumes: Sequence[MountedVolume]) -> None:
        self._volumes = {volume.ref.volume_id: volume for volume in volumes}
        self._container: Container | None = None
        self._background: asyncio.Task[None] | None = None

    def binds(self) -> tuple[Bind, ...]:
        """What the container is started with."""
        return tuple(volume.bind() for volume in self._volumes.values())

    def overlays(self) -> tuple[Overlay, ...]:
        """What is mounted when it starts."""
        return tuple(volume.overlay() for volume in self._volumes.values())

    def has(self, volume_id: str) -> bool:
        """Whether the container has that volume mounted."""
        return volume_id in self._volumes

    def attach(self, container: Container) -> None:
        """It is this container that they are mounted in; commit when asked."""
        self._container = container

    def started(self, container: Container) -> None:
        """From now on commit in the background."""
        self._container = container
        if any(not volume.ref.read_only for volume in self._volumes.values()):
            self._background = asyncio.create_task(self._commit_regularly())

    async def commit(self, volume_id: str) -> None:
        """RPC ``VolumeCommit``. Raises ``HomeportError``."""
        try:
            await self._volumes[volume_id].commit()
        except OSError as error:
            raise UnavailableError(f"the volume's files cannot be read: {error}") from error

    async def reload(self, volume_id: str) -> None:
        """RPC ``VolumeReload``. Raises ``HomeportError``."""
        if self._container is None:
            raise ConflictError("the container has not started yet")
        try:
            await self._volumes[volume_id].reload(self._container)
        except (OSError, ContainerStartError) as error:
            raise UnavailableError(f"the volume cannot be mounted anew: {error}") from error

    async def refresh(self) -> None:
        """Show the newest committed state of each. Raises ``HomeportError``."""
        if self._container is None:
            raise ConflictError("the container has not started yet")
        try:
            for volume in self._volumes.values():
                await volume.refresh(self._container)
        except (OSError, ContainerStartError) as error:
            raise UnavailableError(f"the volume cannot be mounted anew: {error}") from error

    async def finish(self) -> None:
        """Commit what the ended container left, however it ended. Raises nothing."""
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])
        await asyncio.gather(*(self._commit_last(volume) for volume in self._volumes.values()))

    async def close(self) -> None:
        """Give everything back. Idempotent."""
        volumes, self._volumes = self._volumes, {}
        for volume in volumes.values():
            await volume.close()

    async def _commit_regularly(self) -> None:
        # There is no event for "somewhere below this directory a file was written".
        while True:
            longest_s = max(volume.scan_s for volume in self._volumes.values())
            await asyncio.sleep(max(BACKGROUND_S, _SCAN_SHARE * longest_s))
            for volume in self._volumes.values():
                await _tried(volume)

    async def _commit_last(self, volume: MountedVolume) -> None:
        for _ in range(int(FINAL_S / _FINAL_PAUSE_S)):
            if await _tried(volume):
                return
            await asyncio.sleep(_FINAL_PAUSE_S)


async def _tried(volume: MountedVolume) -> bool:
    """Commit; whether that is settled (also by the volume being gone)."""
    try:
        await volume.commit()
    except NotFoundError:
        return True
    except UnavailableError as error:
        log.warning("a volume is not committed yet", id=volume.ref.volume_id, error=error.message)
        return False
    except (HomeportError, OSError) as error:
        log.error("a volume cannot be committed", id=volume.ref.volume_id, error=str(error))
    return True


class NodeVolumes:
    """Gives containers their volumes."""

    def __init__(self, layers: VolumeLayers, source: VolumeSource) -> None:
        self._layers = layers
        self._source = source

    async def prepare(self, refs: Sequence[VolumeRef], folder: Path) -> ContainerVolumes:
        """The newest revisions, ready to be mounted; close what is returned.

        ``folder`` takes what the container writes. Raises ``HomeportError`` or ``OSError``.
        """
        volumes: list[MountedVolume] = []
        try:
            for ref in refs:
                snapshot = await self._layers.acquire(ref.volume_id)
                own = folder / ref.volume_id
                volumes.append(MountedVolume(ref, own, snapshot, self._layers, self._source))
        except BaseException:
            await ContainerVolumes(volumes).close()
            raise
        return ContainerVolumes(volumes)


def _remove(upper: Path) -> None:
    remove_tree(upper)
    remove_tree(upper.with_name(upper.name + ".work"))
