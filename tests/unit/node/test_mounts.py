"""Mounts become layer directories: whole, once, verified."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from homeport.kernel.errors import InvalidError, NotFoundError, UnavailableError
from homeport.link.messages import ManifestFile
from homeport.node.mounts import MountStore


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Source:
    """A server with files; ``here`` are the ones on this disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self.here: set[str] = set()
        self.manifests: dict[str, list[ManifestFile]] = {}
        self.asked: list[str] = []
        self.fetched: list[str] = []

    def put(self, data: bytes, *, here: bool, mode: int = 0o644) -> str:
        digest = sha(data)
        self.files[digest] = data
        if here:
            (self.folder / digest).write_bytes(data)
            (self.folder / digest).chmod(mode)
            self.here.add(digest)
        return digest

    def local(self, sha256: str) -> Path | None:
        return self.folder / sha256 if sha256 in self.here else None

    async def manifest(self, digest: str) -> list[ManifestFile]:
        self.asked.append(digest)
        await asyncio.sleep(0)
        if digest not in self.manifests:
            raise NotFoundError(f"the server has no mount {digest}")
        return self.manifests[digest]

    async def download(self, sha256: str, target: Path) -> None:
        self.fetched.append(sha256)
        await asyncio.sleep(0)
        if sha256 not in self.files:
            raise UnavailableError("gone")
        await asyncio.to_thread(target.write_bytes, self.files[sha256])


@pytest.fixture
def source(tmp_path: Path) -> Source:
    folder = tmp_path / "server"
    folder.mkdir()
    return Source(folder)


@pytest.fixture
def store(tmp_path: Path, source: Source) -> MountStore:
    return MountStore(tmp_path / "mounts", source)


def file(name: str, sha256: str, mode: int = 0o644) -> ManifestFile:
    return ManifestFile(name, sha256, mode, 1)


def test_files_are_at_their_paths_linked_or_fetched(store: MountStore, source: Source) -> None:
    near, far = source.put(b"near", here=True), source.put(b"far", here=False)
    source.manifests["m"] = [
        file("/root/a.py", near),
        file("/pkg/x/b.py", far),
        file("/pkg/run.sh", near, 0o755),
    ]
    path = asyncio.run(store.layer("m"))
    assert (path / "root/a.py").read_bytes() == b"near"
    assert (path / "root/a.py").stat().st_ino == (source.folder / near).stat().st_ino
    assert (path / "pkg/x/b.py").read_bytes() == b"far"
    assert (path / "pkg/run.sh").stat().st_mode & 0o777 == 0o755
    assert (source.folder / near).stat().st_mode & 0o777 == 0o644
    assert source.fetched == [far]


def test_mount_is_built_once_for_all_who_ask(store: MountStore, source: Source) -> None:
    far = source.put(b"far", here=False)
    source.manifests["m"] = [file("/root/a", far), file("/root/b", far)]

    async def ask() -> None:
        await asyncio.gather(*(store.layer("m") for _ in range(5)))
        await store.layer("m")

    asyncio.run(ask())
    assert source.asked == ["m"]
    assert source.fetched == [far]


def test_fetched_files_are_shared_by_mounts(store: MountStore, source: Source) -> None:
    far = source.put(b"far", here=False)
    source.manifests["m"] = [file("/root/a", far)]
    source.manifests["n"] = [file("/root/b", far)]

    async def ask() -> None:
        await store.layer("m")
        await store.layer("n")

    asyncio.run(ask())
    assert source.fetched == [far]


def test_failed_build_leaves_nothing_and_can_be_repeated(store: MountStore, source: Source) -> None:
    missing = sha(b"late")
    source.manifests["m"] = [file("/root/a", source.put(b"x", here=True)), file("/root/b", missing)]
    with pytest.raises(UnavailableError):
        asyncio.run(store.layer("m"))
    assert not store.path("m").exists()
    assert list((store.root / ".work").iterdir()) == []
    source.put(b"late", here=False)
    assert (asyncio.run(store.layer("m")) / "root/b").read_bytes() == b"late"


@pytest.mark.parametrize("name", ["root/a", "/../etc/passwd", "/root/../../x", "/"])
def test_names_outside_the_root_are_refused(store: MountStore, source: Source, name: str) -> None:
    source.manifests["m"] = [file(name, source.put(b"x", here=True))]
    with pytest.raises(InvalidError, match="not a path in a container"):
        asyncio.run(store.layer("m"))


def test_tmp_keeps_its_sticky_mode(store: MountStore, source: Source) -> None:
    source.manifests["m"] = [file("/tmp/x", source.put(b"x", here=True))]
    path = asyncio.run(store.layer("m"))
    assert (path / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_unknown_mount_is_named(store: MountStore) -> None:
    with pytest.raises(NotFoundError, match="no mount nothing"):
        asyncio.run(store.layer("nothing"))
