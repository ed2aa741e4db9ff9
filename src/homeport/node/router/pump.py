"""Reading a program's pipe or terminal into an ``Output``."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import Final

import structlog

from homeport.node.router.output import Output

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PIPE_BYTES: Final = 256 * 1024
_F_SETPIPE_SZ: Final = 1031


def output_pipe() -> tuple[int, int]:
    """The reading and the writing end of a pipe for much data."""
    read, write = os.pipe()
    with contextlib.suppress(OSError):  # users' pipes are limited together
        fcntl.fcntl(write, _F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(read, False)
    return read, write


async def pump(fd: int, output: Output) -> None:
    """Until everybody closed the other end of ``fd``, which is closed then; ends ``output``."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        while True:
            try:
                data = os.read(fd, PIPE_BYTES)
            except BlockingIOError:
                readable.clear()
                await readable.wait()
                continue
            except OSError:  # a terminal that nobody has open any more
                return
            if not data:
                return
            if not output.ended:
                await output.append(data)
    except OSError as error:
        log.error("a program's output could not be kept", error=str(error))
    finally:
        loop.remove_reader(fd)
        os.close(fd)
        output.end()
