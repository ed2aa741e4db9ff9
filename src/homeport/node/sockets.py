"""Sockets: unix ones at paths of any length, streams over others, and bytes from one to another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

_PATH_BYTES_MAX = 107
BACKLOG = 128
CHUNK_BYTES: Final = 256 * 1024
"""Read at once from a connection that is passed on."""
HANDSHAKE_S: Final = 30.0


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


async def streams(
    connection: socket.socket, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over an accepted or connected socket; as the server of TLS with ``context``."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol,
        connection,
        ssl=context,
        ssl_handshake_timeout=HANDSHAKE_S if context else None,
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, until its sender has finished; the other one goes on where TCP can say so."""
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        with contextlib.suppress(OSError):
            writer.write_eof()
    else:
        writer.close()
