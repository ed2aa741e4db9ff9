"""Images mounted in a running container, over its own files."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from homeport.kernel.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from homeport.node.layers import remove_tree
from homeport.node.runtime.port import (
    Container,
    ContainerStartError,
    ImageTree,
    MountedImage,
    RuntimeUnavailableError,
)

MOUNTED_MAX: Final = 100
"""Images in one container: each is a mount of the kernel's."""
_ERRORS: Final = (ContainerStartError, RuntimeUnavailableError)


class Layers(Protocol):
    """The image layers of this node."""

    def path(self, key: str) -> Path: ...

    def has(self, key: str) -> bool: ...

    def pin(self, keys: Iterable[str]) -> None: ...

    def unpin(self, keys: Iterable[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class ImageMount:
    """One mounted image; without ``image_id`` it began empty."""

    image_id: str
    layers: tuple[str, ...]
    folder: Path
    mounted: MountedImage

    @property
    def upper(self) -> Path:
        """What the container wrote there."""
        return self.folder / "upper"


class ContainerImages:
    """The images mounted in one container, by the paths they were asked for.

    ``folder`` takes what the container writes to them, and is deleted by who made it.
    """

    def __init__(self, layers: Layers, folder: Path) -> None:
        self._layers = layers
        self._folder = folder
        self._mounts: dict[str, ImageMount] = {}
        self._lock = asyncio.Lock()
        self._count = 0

    @property
    def any_mounted(self) -> bool:
        return bool(self._mounts)

    def at(self, device: int) -> ImageMount | None:
        """The image whose mount has that device number."""
        for mount in self._mounts.values():
            if mount.mounted.device == device:
                return mount
        return None

    async def mount(
        self, container: Container, path: str, image_id: str, layers: Sequence[str]
    ) -> None:
        """Show an image's ``layers`` at ``path``, over (and instead of) what is there.

        Raises ``InvalidError`` about the path, ``ConflictError`` if an image that is mounted there
        is in use, ``NotFoundError``, ``UnavailableError``.
        """
        path = _place(path)
        async with self._lock:
            missing = [key for key in layers if not self._layers.has(key)]
            if missing:
                raise NotFoundError(f"this node does not have image layer {missing[0]}")
            if path in self._mounts:
                await self._unmount(container, path)
            if len(self._mounts) >= MOUNTED_MAX:
                raise InvalidError(
                    f"a sandbox can have {MOUNTED_MAX} images mounted; unmount one first"
                )
            self._layers.pin(layers)
            try:
                self._mounts[path] = await self._mount(container, path, image_id, tuple(layers))
            except BaseException:
                self._layers.unpin(layers)
                raise

    async def _mount(
        self, container: Container, path: str, image_id: str, layers: tuple[str, ...]
    ) -> ImageMount:
        self._count += 1
        folder = self._folder / str(self._count)
        await asyncio.to_thread(_make, folder)
        paths = tuple(self._layers.path(key) for key in layers) or (folder / "empty",)
        tree = ImageTree(path, paths, folder / "upper", folder / "work")
        try:
            mounted = await container.mount_image(tree)
        except _ERRORS as error:
            await asyncio.to_thread(remove_tree, folder)
            if isinstance(error, RuntimeUnavailableError):
                raise UnavailableError(str(error)) from error
            raise InvalidError(f"no image can be mounted there: {error}") from error
        return ImageMount(image_id, layers, folder, mounted)

    async def unmount(self, container: Container, path: str) -> None:
        """Take the image at ``path`` away, with what was written to it.

        Raises ``InvalidError`` if there is none, ``ConflictError`` if it is in use.
        """
        path = _place(path)
        async with self._lock:
            if path not in self._mounts:
                raise InvalidError(
                    f"no image is mounted at {path}: give the path that mount_image was given"
                )
            await self._unmount(container, path)

    async def _unmount(self, container: Container, path: str) -> None:
        mount = self._mounts[path]
        try:
            is_gone = await container.unmount_image(mount.mounted)
        except _ERRORS as error:
            raise UnavailableError(f"the image cannot be unmounted: {error}") from error
        if not is_gone:
            raise ConflictError(
                f"the image at {path} is in use: programs of the sandbox have files open there, or "
                "work in that directory, or something is mounted in it; end them first"
            )
        del self._mounts[path]
        self._layers.unpin(mount.layers)
        await asyncio.to_thread(remove_tree, mount.folder)

    def close(self) -> None:
        """The container is gone."""
        for mount in self._mounts.values():
            self._layers.unpin(mount.layers)
        self._mounts.clear()


def _make(folder: Path) -> None:
    for name in ("upper", "work", "empty"):
        (folder / name).mkdir(parents=True)
    (folder / "upper").chmod(0o755)
    (folder / "empty").chmod(0o755)


def _place(path: str) -> str:
    """``path`` in its plain form. Raises ``InvalidError`` for one that no image can have."""
    if not path.startswith("/") or "\0" in path:
        raise InvalidError(f"the place of an image is an absolute path, not {path[:200]!r}")
    place = posixpath.normpath("/" + path.lstrip("/"))
    if place == "/":
        raise InvalidError("an image cannot be mounted over the whole sandbox (/)")
    top = place.split("/")[1]
    if top in ("proc", "sys", "dev", "__modal"):
        raise InvalidError(f"an image cannot be mounted in /{top}, which is the platform's")
    return place
