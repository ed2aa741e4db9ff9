"""Opening files below a directory whose contents others decide: links must not lead out of it."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

RESOLVE_IN_ROOT: Final = 0x10
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_SYS_OPENAT2: Final = 437
"""On every architecture: it came after the tables were unified."""

_libc: Any = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_in_root(root: int, path: str, flags: int = os.O_RDONLY, mode: int = 0) -> int:
    """Open ``path`` as a process with ``root`` (a directory fd) as its root would see it.

    Symbolic links, also absolute ones, never lead out of ``root``. Raises ``OSError``.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    result = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        root,
        os.fsencode(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"openat2: {os.strerror(number)}")
    return result


def real_path_in_root(root: int, path: str) -> str | None:
    """``path`` inside ``root`` with its symbolic links resolved; ``None`` if it does not exist."""
    try:
        fd = open_in_root(root, path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        base = os.readlink(f"/proc/self/fd/{root}")
        found = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return found[len(base) :] or "/"
