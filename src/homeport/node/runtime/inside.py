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
