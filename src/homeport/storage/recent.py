"""Small contents that came or were asked for lately, in memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

SMALL_BYTES: Final = 64 * 1024
"""Contents up to this size are kept: for them the way to the disk's threads costs the most."""
_TOTAL_BYTES: Final = 32 * 1024 * 1024


class Recent:
    """Contents by their SHA-256, which never change; the ones least recently used go first."""

    def __init__(self, bytes_max: int = _TOTAL_BYTES) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._contents: OrderedDict[str, bytes] = OrderedDict()

    def get(self, sha256: str) -> bytes | None:
        data = self._contents.get(sha256)
        if data is not None:
            self._contents.move_to_end(sha256)
        return data

    def put(self, sha256: str, data: bytes) -> None:
        """Keep ``data`` if it is small. Only what is stored may be put here."""
        if len(data) > SMALL_BYTES or sha256 in self._contents:
            return
        self._contents[sha256] = data
        self._bytes += len(data)
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._contents.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget all of them: stored contents may have been removed."""
        self._contents.clear()
        self._bytes = 0
