"""Unix sockets at paths of any length."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

_PATH_BYTES_MAX = 107
BACKLOG = 128


async def serve_unix(
    factory: Callable[[], asyncio.BaseProtocol], path: Path
) -> asyncio.AbstractServer:
    """Listen at ``path`` (its directory exists, it does not).

    The kernel takes at most 107 bytes; a longer path is bound through its open directory.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
            listener.bind(str(path))
        else:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
            try:
                listener.bind(f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.close(directory)
        # Any user of the container may connect; only its own directory is shared with it.
        os.chmod(path, 0o666)
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        return await loop.create_unix_server(factory, sock=listener, backlog=BACKLOG)
    except BaseException:
        listener.close()
        raise
