"""What a commit takes of files that are being written while it reads them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from homeport.link.volumes import BLOCK_BYTES, FILE
from homeport.node.volumes import sending
from homeport.node.volumes.sending import Sender
from homeport.node.volumes.upper import Found


class Kept:
    """A server's blocks."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, bytes] = {}

    async def missing(self, hashes: Sequence[bytes]) -> set[bytes]:
        return set(hashes) - self.blocks.keys()

    async def put_block(self, sha256: bytes, data: bytes) -> None:
        self.blocks[sha256] = data


@pytest.mark.parametrize("size", [1, 900_000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 5])
def test_a_file_that_grows_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a" * size)
    read = sending._read_block
    grown: list[int] = []

    def read_and_grow(descriptor: int, offset: int) -> object:
        block = read(descriptor, offset)
        if len(grown) < 3:
            grown.append(offset)
            with file.open("ab") as more:
                more.write(b"b" * 10)
        return block

    monkeypatch.setattr(sending, "_read_block", read_and_grow)
    server = Kept()
    sender = Sender(tmp_path, server)
    (entry,) = asyncio.run(sender.send([Found("file", FILE, 0o644, size, 1.0)], {}))
    assert sender.unsettled == {"file"}
    hashes = [entry.hashes[n : n + 32] for n in range(0, len(entry.hashes), 32)]
    assert len(hashes) == -(-entry.size // BLOCK_BYTES)
    content = b"".join(server.blocks[sha256] for sha256 in hashes)
    assert len(content) == entry.size >= size
    assert file.read_bytes().startswith(content)
    assert all(hashlib.sha256(data).digest() == name for name, data in server.blocks.items())
