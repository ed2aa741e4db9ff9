"""Network file systems: paths, patterns, and directories that containers fill with anything."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from homeport.kernel.errors import HomeportError, InvalidError, NotFoundError
from homeport.nfs.model import EntryKind, Glob, file_path
from homeport.nfs.tree import SharedTree


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("*", ["a", ".b"], ["a/b"]),
        ("**", ["a", "a/b", "a/b/c"], []),
        ("/a/*.txt", ["a/b.txt"], ["a/b/c.txt", "b.txt"]),
        ("a/**/c", ["a/c", "a/b/c", "a/b/b/c"], ["a", "c", "b/a/c"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "ab"]),
        ("**/**/a/**/a", ["a/a", "b/a/c/a"], ["a", "a/b"]),
        ("[ab]?*", ["ax", "bxx"], ["a", "cx", "a/x"]),
    ],
)
def test_patterns(glob: str, matching: list[str], other: list[str]) -> None:
    wanted = Glob(glob)
    assert [path for path in (*matching, *other) if wanted.matches(path)] == matching


@pytest.mark.parametrize("path", ["", "/", "a/", "../a", "a/../../b", "a\0b", "x" * 256])
def test_what_no_file_can_be_called(path: str) -> None:
    with pytest.raises(InvalidError):
        file_path(path)


@pytest.fixture
def tree(tmp_path: Path) -> SharedTree:
    for name in ("root", "incoming"):
        (tmp_path / name).mkdir()
    return SharedTree(tmp_path / "root", tmp_path / "incoming", fsync=True)


def read(tree: SharedTree, path: str) -> bytes:
    with tree.open(path) as file:
        return file.read()


def test_a_write_leaves_nothing_half_done(tree: SharedTree, tmp_path: Path) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(28, "No space left on device")

    tree.write("dir/a", io.BytesIO(b"old"))
    with pytest.raises(HomeportError, match="No space left"):
        tree.write("dir/a", Breaking())
    assert read(tree, "dir/a") == b"old"
    assert list((tmp_path / "incoming").iterdir()) == []
    assert ((tmp_path / "root/dir/a").stat().st_mode & 0o777) == 0o644


def test_links_are_followed_within_it_and_never_out(tree: SharedTree, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (tmp_path / "secret").write_text("not for clients")
    tree.write("a", io.BytesIO(b"inside"))
    (root / "absolute").symlink_to("/a")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to("../secret")
    (root / "parent").symlink_to("..")
    assert read(tree, "absolute") == b"inside"
    attempts: list[Callable[[], object]] = [
        lambda: read(tree, "out"),
        lambda: read(tree, "up"),
        lambda: read(tree, "parent/secret"),
    ]
    for attempt in attempts:
        with pytest.raises(NotFoundError):
            attempt()
    tree.write("parent/secret", io.BytesIO(b"written"))
    assert (root / "secret").read_bytes() == b"written"
    tree.remove("parent/secret", recursive=True, missing_ok=False)
    tree.remove("out", recursive=True, missing_ok=False)
    assert (tmp_path / "secret").read_text() == "not for clients"
    kinds = {entry.path: entry.kind for entry in tree.list("/")}
    assert kinds == {
        "a": EntryKind.FILE,
        "absolute": EntryKind.SYMLINK,
        "parent": EntryKind.SYMLINK,
        "up": EntryKind.SYMLINK,
    }


def test_a_pipe_keeps_nobody_waiting(tree: SharedTree, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root" / "pipe")
    with pytest.raises(InvalidError, match="not a file"):
        tree.open("pipe")


def test_a_repeated_removal(tree: SharedTree) -> None:
    tree.write("a/b", io.BytesIO(b""))
    tree.remove("a", recursive=True, missing_ok=False)
    tree.remove("a", recursive=True, missing_ok=True)
    with pytest.raises(NotFoundError):
        tree.remove("a", recursive=True, missing_ok=False)
    with pytest.raises(InvalidError, match="root"):
        tree.remove("/", recursive=True, missing_ok=False)
