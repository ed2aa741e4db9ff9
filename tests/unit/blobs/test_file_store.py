"""The file store on a real disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.feature_home import sha256

from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.storage.blobs import FileStore
from homeport.storage.contents import STREAM_BYTES, ContentMismatchError
from homeport.storage.keyfile import read_or_create


def run(root: Path, scenario: Callable[[FileStore], Awaitable[None]]) -> None:
    async def main() -> None:
        files = FileStore(root, fsync=True)
        files.prepare()
        try:
            await scenario(files)
        finally:
            files.close()

    asyncio.run(main())


async def pieces(data: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def temporary_files(root: Path) -> list[str]:
    return os.listdir(root / "tmp")


def test_content_is_found_by_its_hash_and_cannot_be_changed(tmp_path: Path) -> None:
    async def scenario(files: FileStore) -> None:
        name = await files.put_bytes(b"hello")
        assert name == sha256(b"hello")
        assert files.path(name) == tmp_path / name[:2] / name
        assert files.path(name).stat().st_mode & 0o777 == 0o444
        assert await files.has(name)
        assert await files.read(name) == b"hello"
        with await files.open(name) as file:
            assert file.read() == b"hello"

    run(tmp_path, scenario)


def test_a_stream_larger_than_memory_pieces_arrives_whole(tmp_path: Path) -> None:
    data = os.urandom(3 * STREAM_BYTES + 17)

    async def scenario(files: FileStore) -> None:
        name, md5, size = await files.put_stream(pieces(data))
        assert (name, size) == (sha256(data), len(data))
        assert md5 == hashlib.md5(data).hexdigest()
        assert await files.read(name) == data

    run(tmp_path, scenario)


def test_an_empty_content_is_a_content(tmp_path: Path) -> None:
    async def scenario(files: FileStore) -> None:
        name, _, size = await files.put_stream(pieces(b""))
        assert size == 0
        assert await files.has(name)
        assert await files.put_bytes(b"") == name

    run(tmp_path, scenario)


def test_what_is_not_announced_is_not_stored(tmp_path: Path) -> None:
    async def scenario(files: FileStore) -> None:
        with pytest.raises(ContentMismatchError):
            await files.put_stream(pieces(b"abc"), expect=sha256(b"abd"))
        with pytest.raises(InvalidError, match="more than the announced 2 bytes"):
            await files.put_stream(pieces(b"abc"), size_max=2)
        with pytest.raises(ContentMismatchError):
            await files.put_bytes(b"abc", expect=sha256(b"abd"))
        assert not await files.has(sha256(b"abc"))

    run(tmp_path, scenario)
    assert temporary_files(tmp_path) == []


def test_a_sender_that_vanishes_leaves_nothing(tmp_path: Path) -> None:
    async def vanishing() -> AsyncIterator[bytes]:
        yield b"x" * (2 * STREAM_BYTES)
        raise ConnectionResetError

    async def scenario(files: FileStore) -> None:
        with pytest.raises(ConnectionResetError):
            await files.put_stream(vanishing())

    run(tmp_path, scenario)
    assert temporary_files(tmp_path) == []


def test_storing_twice_keeps_the_first_file(tmp_path: Path) -> None:
    """Nodes may have linked it."""

    async def scenario(files: FileStore) -> None:
        name = await files.put_bytes(b"same")
        inode = files.path(name).stat().st_ino
        modified = files.path(name).stat().st_mtime_ns
        source = tmp_path / "source"
        source.write_bytes(b"same")
        assert await files.put_file(source) == name
        assert await files.adopt_file(source) == name
        assert not source.exists()
        await files.put_stream(pieces(b"same"))
        assert files.path(name).stat().st_ino == inode
        assert files.path(name).stat().st_mtime_ns == modified

    run(tmp_path, scenario)


def test_a_file_emptied_by_a_power_cut_is_missing_and_written_again(tmp_path: Path) -> None:
    async def scenario(files: FileStore) -> None:
        name = await files.put_bytes(b"lost")
        os.truncate(files.path(name), 0)
        assert not await files.has(name)
        await files.put_bytes(b"lost")
        assert await files.read(name) == b"lost"

    run(tmp_path, scenario)


def test_names_that_are_no_hashes_lead_nowhere(tmp_path: Path) -> None:
    async def scenario(files: FileStore) -> None:
        for name in ("", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"):
            with pytest.raises(InvalidError):
                files.path(name)
        with pytest.raises(NotFoundError):
            await files.read("a" * 64)

    run(tmp_path, scenario)


def test_start_removes_temporary_files_only(tmp_path: Path) -> None:
    async def scenario(files: FileStore) -> None:
        name = await files.put_bytes(b"kept")
        (tmp_path / "tmp" / "half").write_bytes(b"x")
        files.prepare()
        assert temporary_files(tmp_path) == []
        assert await files.has(name)

    run(tmp_path, scenario)


def test_sweep_removes_what_is_neither_live_nor_recent(tmp_path: Path) -> None:
    async def scenario(files: FileStore) -> None:
        live, old, asked, recent = [
            await files.put_bytes(data) for data in (b"1", b"2", b"3", b"4")
        ]
        for name in (live, old, asked):
            os.utime(files.path(name), (1, 1))
        assert sorted(await files.sizes([asked, "0" * 64])) == [asked]
        assert await files.sweep({live}) == 1
        assert [await files.has(name) for name in (live, old, asked, recent)] == [
            True,
            False,
            True,
            True,
        ]

    run(tmp_path, scenario)


def test_a_key_file_is_private_stable_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "home" / "some.key"
    key = read_or_create(path)
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_or_create(path) == key
    assert os.listdir(path.parent) == ["some.key"]
    path.write_bytes(b"short")
    with pytest.raises(InvalidError, match="damaged"):
        read_or_create(path)


def test_small_contents_that_come_together_keep_their_own_outcomes(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = FileStore(tmp_path / "blobs")
        store.prepare()
        right = hashlib.sha256(b"right").hexdigest()
        outcomes = await asyncio.gather(
            *(store.put_bytes(b"%d" % number) for number in range(50)),
            store.put_bytes(b"right", expect=right),
            store.put_bytes(b"wrong", expect=right),
            return_exceptions=True,
        )
        expected = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(50)]
        assert outcomes[:51] == [*expected, right]
        assert isinstance(outcomes[51], ContentMismatchError)
        assert await store.read(right) == b"right"
        store.close()

    asyncio.run(scenario())
