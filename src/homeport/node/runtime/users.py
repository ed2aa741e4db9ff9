"""Who a container's command runs as: names of the image's own /etc/passwd and /etc/group."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from homeport.node.runtime import linux
from homeport.node.runtime.port import ContainerStartError

_FILE_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class User:
    """Numbers to become, and the home directory the image names for them."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/root"

    def within(self, groups: tuple[int, ...]) -> User:
        """The same one, in these groups too."""
        more = tuple(group for group in groups if group not in self.groups)
        return replace(self, groups=(*self.groups, *more)) if more else self


def resolve_user(root: Path, asked: str) -> User:
    """``asked`` (``name``, ``uid``, ``name:group``, ``uid:gid`` or empty for root) in the image.

    ``root`` is the mounted root file system. A number without an entry
    is taken as it is, with group 0. Raises ``ContainerStartError`` for an unknown name.
    """
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _resolve(fd, asked)
    finally:
        os.close(fd)


def _resolve(root: int, asked: str) -> User:
    name, _, group = asked.partition(":")
    name = name or "0"
    user = _find_user(_lines(root, "etc/passwd"), name)
    groups = _lines(root, "etc/group")
    if user is None:
        if not name.isdecimal():
            raise ContainerStartError(f"the image has no user {name!r} in its /etc/passwd")
        user = (name, int(name), 0, "/root" if int(name) == 0 else "/")
    login, uid, gid, home = user
    if group:
        return User(uid, _find_group(groups, group), (), home)
    extra = tuple(
        int(fields[2])
        for fields in groups
        if len(fields) >= 4 and login in fields[3].split(",") and fields[2].isdecimal()
    )
    return User(uid, gid, extra[:63], home)


def _find_user(lines: list[list[str]], name: str) -> tuple[str, int, int, str] | None:
    for fields in lines:
        if len(fields) < 6 or not (fields[2].isdecimal() and fields[3].isdecimal()):
            continue
        if name in (fields[0], fields[2]):
            return fields[0], int(fields[2]), int(fields[3]), fields[5] or "/"
    return None


def _find_group(lines: list[list[str]], name: str) -> int:
    if name.isdecimal():
        return int(name)
    for fields in lines:
        if len(fields) >= 3 and fields[0] == name and fields[2].isdecimal():
            return int(fields[2])
    raise ContainerStartError(f"the image has no group {name!r} in its /etc/group")


def _lines(root: int, path: str) -> list[list[str]]:
    try:
        fd = linux.open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    with os.fdopen(fd, "rb") as file:
        text = file.read(_FILE_MAX).decode(errors="replace")
    return [line.split(":") for line in text.splitlines()]
