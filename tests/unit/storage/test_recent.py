"""Small contents in memory: bounded, and gone with what is stored."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from homeport.kernel.errors import NotFoundError
from homeport.storage.blobs import FileStore
from homeport.storage.recent import SMALL_BYTES, Recent


def test_what_was_not_asked_for_lately_goes_first() -> None:
    recent = Recent(bytes_max=10)
    recent.put("a", b"aaaa")
    recent.put("b", b"bbbb")
    assert recent.get("a") == b"aaaa"
    recent.put("c", b"cccc")
    assert [recent.get(name) for name in "abc"] == [b"aaaa", None, b"cccc"]


def test_the_same_again_counts_once() -> None:
    recent = Recent(bytes_max=10)
    for _ in range(5):
        recent.put("a", b"aaaa")
    recent.put("b", b"bbbb")
    assert recent.get("a")


def test_large_contents_are_left_out() -> None:
    recent = Recent()
    recent.put("a", bytes(SMALL_BYTES + 1))
    assert recent.get("a") is None


def test_swept_contents_are_not_read_from_memory(tmp_path: Path) -> None:
    async def run() -> None:
        files = FileStore(tmp_path / "contents")
        files.prepare()
        try:
            sha256 = await files.put_bytes(b"small")
            assert await files.part(sha256, 1, 3) == b"mal"
            assert await files.sweep(set(), grace_s=-1) == 1
            with pytest.raises(NotFoundError):
                await files.part(sha256, 1, 3)
        finally:
            files.close()

    asyncio.run(run())
