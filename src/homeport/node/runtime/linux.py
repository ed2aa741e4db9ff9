"""The few system calls of Linux that Python 3.11 does not offer, as plain functions.

All raise ``OSError`` with the call's name. Namespace calls act on the calling *thread* only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import Any, Final

from homeport.kernel.confined import open_in_root as open_in_root
from homeport.kernel.confined import real_path_in_root as real_path_in_root

CLONE_NEWNS: Final = 0x00020000
CLONE_FS: Final = 0x00000200
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW = 8

_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_FSOPEN_CLOEXEC: Final = 1
_OPEN_TREE_CLONE: Final = 1
_AT_RECURSIVE: Final = 0x8000
_FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_NOSUID: Final = 2
_MOUNT_ATTR_NODEV: Final = 4

# The same numbers on every architecture (they came after the tables were unified).
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432

_F_ADD_SEALS: Final = 1033
_F_SEAL_ALL: Final = 0x0F  # seal, shrink, grow, write

_libc: Any = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}", path)
    return result


def _syscall(what: str, number: int, *arguments: Any) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), what)


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace ``fd`` (of ``kind``, a ``CLONE_NEW…``)."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """``mount(2)``; ``data`` must fit one page."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode() or None,
            ctypes.c_ulong(flags),
            os.fsencode(data) or None,
        ),
        f"mount {kind or 'bind'}",
        target,
    )


def unmount(target: str) -> None:
    """Detach what is mounted at ``target`` now; it ends with its last user."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), "umount", target)


def unmount_unused(target: str, *, follow: bool = True) -> bool:
    """Unmount what is mounted at ``target``; False if anything uses it (open files, directories)."""
    if _libc.umount2(os.fsencode(target), ctypes.c_int(0 if follow else UMOUNT_NOFOLLOW)) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        return False
    raise OSError(number, f"umount: {os.strerror(number)}", target)


def punch_hole(fd: int, start: int, end: int) -> None:
    """Free that part of a file; it reads as zeros from now on."""
    flags = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    size = ctypes.c_int64(end - start)
    _check(_libc.fallocate(fd, ctypes.c_int(flags), ctypes.c_int64(start), size), "fallocate")


def clone_mount(directory: int, *, recursive: bool = False) -> int:
    """The open ``directory`` with what is below it once more, mounted nowhere; a descriptor.

    ``recursive``: with what is mounted below it.
    """
    flags = _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _syscall("open_tree", _SYS_OPEN_TREE, directory, b"", flags)


def place_mount(mount: int, target: str) -> None:
    """Mount what is mounted nowhere yet at ``target`` in the calling thread's mount namespace."""
    _syscall(
        "move_mount",
        _SYS_MOVE_MOUNT,
        mount,
        b"",
        _AT_FDCWD,
        os.fsencode(target),
        _MOVE_MOUNT_F_EMPTY_PATH,
    )


class NewMount:
    """A file system being configured with ``fsopen``/``fsconfig`` (options without a page limit)."""

    def __init__(self, kind: str) -> None:
        self._fd = _syscall("fsopen", _SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)

    def text(self, key: str, value: str) -> None:
        """Set an option with a value."""
        self._config(_FSCONFIG_SET_STRING, key.encode(), os.fsencode(value))

    def flag(self, key: str) -> None:
        """Set an option without a value."""
        self._config(_FSCONFIG_SET_FLAG, key.encode(), None)

    def create(self) -> int:
        """Make the file system, without devices and set-uid; a descriptor, as of ``clone_mount``."""
        self._config(_FSCONFIG_CMD_CREATE, None, None)
        attributes = _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOSUID
        return _syscall("fsmount", _SYS_FSMOUNT, self._fd, _FSMOUNT_CLOEXEC, attributes)

    def close(self) -> None:
        """Release the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _config(self, command: int, key: bytes | None, value: bytes | None) -> None:
        what = f"{key.decode()} {os.fsdecode(value or b'')}".strip() if key else "mounting it"
        _syscall(what, _SYS_FSCONFIG, self._fd, command, key, value, 0)


def memory_file(name: str, content: bytes, flags: int = os.MFD_CLOEXEC) -> int:
    """An anonymous file with ``content``, positioned at its start; a descriptor."""
    fd = os.memfd_create(name, flags)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def sealed_memory_file(name: str, content: bytes) -> int:
    """Such a file that nobody can change any more."""
    fd = memory_file(name, content, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_ALL)
    return fd
