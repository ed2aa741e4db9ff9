"""Threads in which containers are put together.

Each has a mount namespace of its own (slave of the host's), so a container's root file system is
mounted where only the tool started from that thread sees it: nothing appears in the host's mount
table, and the kernel unmounts it with the container's last process, whatever becomes of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from homeport.node.runtime import linux
from homeport.node.runtime.inside import link_to, mount_at, mount_image_at, unmount_image_at
from homeport.node.runtime.overlay import mount_data, root_tree
from homeport.node.runtime.port import (
    ContainerStartError,
    ImageTree,
    MountedImage,
    Overlay,
    RuntimeUnavailableError,
    Tree,
)

_THREADS: Final = 4
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Inside:
    """Where a container's files are seen: in the mounts of process ``pid``.

    Its root is that process's, or the directory ``below`` in it (``/name``).
    """

    pid: int
    below: str = ""

    @property
    def root(self) -> str:
        """A path that leads there from outside."""
        return f"/proc/{self.pid}/root{self.below}"


class Stage:
    """A few such threads. ``private`` is False without CAP_SYS_ADMIN: then nothing is mounted."""

    def __init__(self, directory: Path, *, private: bool, threads: int = _THREADS) -> None:
        self._directory = directory
        self._private = private
        self._local = threading.local()
        self._next = 0
        self._lock = threading.Lock()
        self._host_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._threads = ThreadPoolExecutor(threads, "homeport-stage", self._enter)

    async def run(self, work: Callable[[], _T]) -> _T:
        """Do ``work`` in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """End the threads and with them their mount namespaces."""
        self._threads.shutdown(wait=True)
        if self._host_network >= 0:
            os.close(self._host_network)
            self._host_network = -1

    def _enter(self) -> None:
        with self._lock:
            number = self._next
            self._next += 1
        place = self._directory / str(number)
        for name in ("root", "sys", "data", "links"):
            (place / name).mkdir(parents=True, exist_ok=True)
        self._local.place = place
        if self._private:
            linux.unshare(linux.CLONE_NEWNS | linux.CLONE_FS)
            linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)

    @property
    def place(self) -> Path:
        """The calling thread's directory with ``root`` and ``sys``."""
        return self._local.place

    def root_tree(self, lowers: Sequence[Path], upper: Path, work: Path) -> int:
        """An overlay, mounted nowhere. See ``overlay.root_tree``."""
        return root_tree(lowers, upper, work, self.place / "data", self.place / "links")

    @contextlib.contextmanager
    def root(self, tree: int) -> Generator[Path]:
        """``tree`` mounted for the time of the block (what was started keeps it)."""
        target = self.place / "root"
        linux.place_mount(tree, str(target))
        try:
            yield target
        finally:
            linux.unmount(str(target))

    @contextlib.contextmanager
    def empty_root(self, directories: Sequence[str]) -> Generator[Path]:
        """A file system with these directories alone, mounted for the time of the block."""
        target = self.place / "root"
        options = f"size=0,nr_inodes={4 * len(directories)},mode=755"
        linux.mount("tmpfs", str(target), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
        try:
            for name in directories:
                (target / name).mkdir(parents=True)
            yield target
        finally:
            linux.unmount(str(target))

    @contextlib.contextmanager
    def network(self, netns_fd: int) -> Generator[Path | None]:
        """The thread in a container's network, with that network's ``/sys`` mounted.

        -1 stays in the host's network and has no ``/sys`` of its own.
        """
        if netns_fd < 0:
            yield None
            return
        target = self.place / "sys"
        linux.setns(netns_fd, linux.CLONE_NEWNET)
        try:
            flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
            linux.mount("sysfs", str(target), "sysfs", flags)
            try:
                yield target
            finally:
                linux.unmount(str(target))
        except OSError as error:
            raise ContainerStartError(f"the container's network: {error}") from error
        finally:
            linux.setns(self._host_network, linux.CLONE_NEWNET)

    @contextlib.contextmanager
    def without(self, place: str) -> Generator[None]:
        """The thread in a copy of its mounts that lacks the one at ``place``.

        What is started in the block keeps that view; the thread goes back to its own.
        """
        own = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.unshare(linux.CLONE_NEWNS)
            try:
                linux.unmount(place)
                yield
            finally:
                linux.setns(own, linux.CLONE_NEWNS)
        finally:
            os.close(own)

    @contextlib.contextmanager
    def without_network_settings(self) -> Generator[None]:
        """The thread in a copy of its mounts that lacks ``/proc/sys/net``, as ``without``."""
        own = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.unshare(linux.CLONE_NEWNS)
            try:
                settings = self.place / "sys"
                linux.mount("/proc/sys", str(settings), "", linux.MS_BIND)
                linux.mount("none", "/proc/sys", "tmpfs")
                for name in ("kernel", "vm", "fs"):
                    os.mkdir(f"/proc/sys/{name}")
                    linux.mount(str(settings / name), f"/proc/sys/{name}", "", linux.MS_BIND)
                os.makedirs("/proc/sys/net/core")
                yield
            finally:
                linux.setns(own, linux.CLONE_NEWNS)
        finally:
            os.close(own)

    def mount_inside(self, inside: Inside, overlay: Overlay) -> None:
        """Mount ``overlay`` where a container sees it.

        Raises ``ContainerStartError``, or ``RuntimeUnavailableError`` without the right to mount.
        """
        tree = self._overlay(overlay)
        try:
            with self._inside(inside):
                mount_at(tree, overlay.target)
                if overlay.link:
                    link_to(overlay.target, overlay.link)
        except OSError as error:
            raise ContainerStartError(f"the volume at {overlay.link}: {error}") from error
        finally:
            os.close(tree)

    def place_inside(self, inside: Inside, tree: Tree) -> None:
        """Place ``tree`` where a container sees it. Raises as ``mount_inside``."""
        if not self._private:
            raise RuntimeUnavailableError("buckets in containers need root on this machine")
        try:
            with self._inside(inside):
                mount_at(tree.fd, tree.target)
        except OSError as error:
            raise ContainerStartError(f"what belongs at {tree.target}: {error}") from error

    def unmount_inside(self, inside: Inside, target: str) -> bool:
        """Unmount what the container sees at ``target``; False if it is in use."""
        with self._inside(inside):
            return linux.unmount_unused(target)

    def delete_inside(self, inside: Inside, path: str) -> None:
        """Delete a file as a container sees it. Raises ``OSError``."""
        with self._inside(inside):
            os.unlink(path)

    def mount_image_inside(self, inside: Inside, tree: ImageTree) -> MountedImage:
        """Mount an image where a container sees it.

        Raises ``ContainerStartError``, or ``RuntimeUnavailableError`` without the right to mount.
        """
        if not self._private:
            raise RuntimeUnavailableError("images in containers need root on this machine")
        descriptor = self.root_tree([*reversed(tree.layers)], tree.upper, tree.work)
        try:
            device = os.fstat(descriptor).st_dev
            with self._inside(inside):
                return MountedImage(mount_image_at(descriptor, tree.target), device)
        except OSError as error:
            raise ContainerStartError(f"{tree.target}: {error.strerror}") from error
        finally:
            os.close(descriptor)

    def unmount_image_inside(self, inside: Inside, mounted: MountedImage) -> bool:
        """Take off what ``mount_image_inside`` mounted; False if it is in use."""
        try:
            with self._inside(inside):
                return unmount_image_at(mounted.path, mounted.device)
        except OSError as error:
            raise ContainerStartError(f"{mounted.path}: {error.strerror}") from error

    def open_inside(self, inside: Inside, path: str) -> int:
        """A directory as a container sees it. Raises ``OSError``."""
        with self._inside(inside):
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _overlay(self, overlay: Overlay) -> int:
        """A descriptor of the overlay, mounted nowhere."""
        if not self._private:
            raise RuntimeUnavailableError("volumes in containers need root on this machine")
        target = self.place / "data"
        lowers = [*reversed(overlay.lowers)]
        mount_data(target, lowers, overlay.upper, overlay.work, self.place / "links")
        try:
            return _cloned(target, overlay.subdirectory)
        finally:
            linux.unmount(str(target))

    @contextlib.contextmanager
    def _inside(self, inside: Inside) -> Generator[None]:
        """The thread in the mount namespace of a container, with that container's root."""
        own = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            theirs = os.open(f"/proc/{inside.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            root = os.open(inside.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                linux.setns(theirs, linux.CLONE_NEWNS)
                os.fchdir(root)  # it need not be that of the namespace
                os.chroot(".")
            finally:
                os.close(theirs)
                os.close(root)
            try:
                yield
            finally:
                linux.setns(own, linux.CLONE_NEWNS)
        finally:
            os.close(own)


def _cloned(root: Path, subdirectory: str) -> int:
    """A directory of the tree mounted at ``root``, mounted nowhere; links do not lead out of it."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_PATH | os.O_DIRECTORY
        directory = linux.open_in_root(top, subdirectory or ".", flags)
    except OSError as error:
        raise ContainerStartError(
            f"the directory {subdirectory!r} of a volume: {error.strerror}"
        ) from None
    finally:
        os.close(top)
    try:
        return linux.clone_mount(directory)
    finally:
        os.close(directory)
