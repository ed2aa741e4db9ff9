"""Bytes of any length between a query and a slow reader."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterable
from typing import Final

_MEMORY_BYTES: Final = 4 * 1024 * 1024
"""What is longer goes to a temporary file."""
_CHUNK_BYTES: Final = 1024 * 1024


class Spool:
    """Takes all ``pieces`` at once, in the thread that makes them, and gives them bit by bit.

    So the query that they come from need not stay open as long as somebody reads them.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._file = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115
        self.size = 0
        """Bytes of all pieces."""
        try:
            for piece in pieces:
                self._file.write(piece)
                self.size += len(piece)
            self._file.seek(0)
        except BaseException:
            self._file.close()
            raise

    async def chunks(self) -> AsyncIterator[bytes]:
        """What was taken, in chunks of other lengths than the pieces had; once."""
        is_short = self.size <= _MEMORY_BYTES
        while True:
            if is_short:
                chunk = self._file.read(_CHUNK_BYTES)
            else:
                chunk = await asyncio.to_thread(self._file.read, _CHUNK_BYTES)
            if not chunk:
                return
            yield chunk

    def close(self) -> None:
        """Give the memory or the disk back."""
        self._file.close()
