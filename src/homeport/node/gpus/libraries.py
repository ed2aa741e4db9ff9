"""What a specification's hooks do, for a runtime that runs none: the driver's libraries are found.

NVIDIA's hooks make links to the driver's libraries in the container and renew its cache of library
names. Both is replaced by a directory with all those links, that is mounted and put on
``LD_LIBRARY_PATH``: nothing is written into the container's own files, which may become an image.
"""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from homeport.node.gpus.cdi import CdiHook, CdiMount, Edits

PLACE: Final = "/usr/local/nvidia/lib64"
"""Where the directory is mounted: NVIDIA's own images look there already."""
_LINKS: Final = "create-symlinks"
_REPLACED: Final = frozenset(
    {_LINKS, "update-ldcache", "chmod", "disable-device-node-modification", "enable-cuda-compat"}
)
"""Hooks that are not missed: device files keep their modes, new ones cannot be made, and an image's
newer driver libraries (``enable-cuda-compat``) are the image's own affair."""


def links(edits: Edits) -> dict[str, str]:
    """Name in the directory → path in the container."""
    found: dict[str, str] = {}
    for mount in edits.mounts:
        name = posixpath.basename(mount.container_path)
        if ".so" not in name:
            continue
        found[name] = mount.container_path
        if (soname := _soname(mount)) and soname == posixpath.basename(soname):
            found[soname] = mount.container_path
    for target, path in _asked_links(edits.hooks):
        name = posixpath.basename(path)
        if ".so" in name:
            whole = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            found.setdefault(name, found.get(posixpath.basename(whole), whole))
    return found


def make_directory(folder: Path, wanted: dict[str, str]) -> None:
    """The links, in ``folder``, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chmod(folder, 0o755)
    for name, target in wanted.items():
        (folder / name).symlink_to(target)


def missed(hooks: Sequence[CdiHook]) -> list[str]:
    """Hooks whose work nothing here does."""
    names = [hook.args[1] if len(hook.args) > 1 else hook.path for hook in hooks]
    return [name for name in dict.fromkeys(names) if name not in _REPLACED]


def _asked_links(hooks: Sequence[CdiHook]) -> Iterator[tuple[str, str]]:
    for hook in hooks:
        if _LINKS not in hook.args[:2]:
            continue
        arguments = iter(hook.args[2:])
        for argument in arguments:
            name, _, value = argument.partition("=")
            if name.lstrip("-") == "link":
                target, _, path = (value or next(arguments, "")).partition("::")
                if target and path:
                    yield target, path


def _soname(mount: CdiMount) -> str:
    """The name by which programs ask for a library; empty if it has none, or is no library."""
    try:
        with open(mount.host_path, "rb") as file:
            for segment in ELFFile(file).iter_segments("PT_DYNAMIC"):
                assert isinstance(segment, DynamicSegment)
                for tag in segment.iter_tags("DT_SONAME"):
                    return str(cast("Any", tag).soname)
    except (OSError, ELFError, ValueError):
        return ""
    return ""
