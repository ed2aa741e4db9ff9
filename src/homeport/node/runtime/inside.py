"""What is done to a container's files from within its own mount namespace.

The calling thread has the container's root directory as its own, so no path leads out of it.
"""

from __future__ import annotations

import os

from homeport.node.runtime import linux
from homeport.node.runtime.port import ContainerStartError


def mount_at(tree: int, target: str) -> None:
    """Mount a detached tree."""
    linux.place_mount(tree, target)


def mount_image_at(tree: int, target: str) -> str:
    """Mount a detached tree over the directory ``target``, which is made if there is none.

    Returns where that is, without symbolic links. Raises ``OSError``.
    """
    path = os.path.realpath(target)
    os.makedirs(path, exist_ok=True)
    linux.place_mount(tree, path)
    return path


def unmount_image_at(path: str, device: int) -> bool:
    """Unmount the file system ``device`` from ``path``; False if it is in use.

    The container may have put anything in the way: nothing but that very mount is taken off. True
    if it is not there. Changes the working directory, so the calling thread must have its own.
    """
    parent, name = os.path.split(path)
    descriptor = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parent.strip("/").split("/"):
            if part:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(part, flags, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
        if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_dev != device:
            return True
        os.fchdir(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return True
    finally:
        os.close(descriptor)
    return linux.unmount_unused(name, follow=False)


def link_to(target: str, link: str) -> None:
    """Make ``link`` lead to ``target``; an empty directory in its place makes room.

    Raises ``ContainerStartError`` if there is anything else.
    """
    if os.path.islink(link) and os.readlink(link) == target:
        return
    link = os.path.realpath(link)
    os.makedirs(os.path.dirname(link), exist_ok=True)
    try:
        os.rmdir(link)
    except FileNotFoundError:
        pass
    except OSError:
        raise ContainerStartError(
            f"cannot mount a volume on the non-empty path {link}: the image has files there; "
            "mount it at another path, or remove them from the image"
        ) from None
    os.symlink(target, link)
