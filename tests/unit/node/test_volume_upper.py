"""What a container changed, read from the upper directory of a real overlay."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from homeport.link.volumes import DIRECTORY, FILE
from homeport.node.runtime import linux
from homeport.node.runtime.overlay import mount_data
from homeport.node.volumes.upper import Difference, Mark, difference, opened

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="overlays need root"),
]


class Tree:
    """An overlay over two layers; work on it runs in a thread that alone sees it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lowers = [root / "top", root / "bottom"]
        self.upper = root / "upper"
        self.known: dict[str, Mark] = {}
        self._jobs: list[Callable[[Path], object]] = []
        for path in (*self.lowers, self.upper, root / "work", root / "at"):
            path.mkdir()

    def write(self, path: Path, text: str = "x") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def change(self, job: Callable[[Path], object]) -> Difference:
        """Do ``job`` in the mounted tree; what differs from the last time."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                linux.unshare(linux.CLONE_NEWNS | linux.CLONE_FS)
                linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
                shutil.rmtree(self.root / "work")
                (self.root / "work").mkdir()
                mount_data(
                    self.root / "at",
                    self.lowers,
                    self.upper,
                    self.root / "work",
                    self.root / "links",
                )
                job(self.root / "at")
                linux.unmount(str(self.root / "at"))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        found = difference(self.upper, self.lowers, self.known)
        self.known = found.marks
        return found


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = tmp_path / "tree"
    root.mkdir()
    made = Tree(root)
    for name in ("a", "d/x", "d/inner/y", "e/z"):
        made.write(made.lowers[1] / name)
    made.write(made.lowers[0] / "d/top")
    os.mknod(made.lowers[0] / "e", 0o020000, 0)  # the top layer says that "e" is gone
    return made


def paths(found: Difference) -> list[str]:
    return sorted(item.path for item in found.found)


def test_nothing_changed(tree: Tree) -> None:
    assert not tree.change(lambda at: None)


def test_new_and_changed_files_once(tree: Tree) -> None:
    def change(at: Path) -> None:
        (at / "a").write_text("changed")
        tree.write(at / "n/new")

    found = tree.change(change)
    assert {item.path: item.kind for item in found.found} == {
        "a": FILE,
        "n": DIRECTORY,
        "n/new": FILE,
    }
    assert (found.trees, found.removed) == ([], [])
    assert not tree.change(lambda at: None)
    assert paths(tree.change(lambda at: (at / "n/new").write_text("again"))) == ["n/new"]


def test_removals(tree: Tree) -> None:
    tree.change(lambda at: tree.write(at / "own"))
    found = tree.change(lambda at: [os.unlink(at / name) for name in ("a", "own")])
    assert (found.trees, found.removed, found.found) == (["a"], ["own"], [])
    assert not tree.change(lambda at: None)
    found = tree.change(lambda at: shutil.rmtree(at / "d"))
    assert found.trees == ["d"]


def test_a_directory_made_anew_hides_the_old_one(tree: Tree) -> None:
    def change(at: Path) -> None:
        shutil.rmtree(at / "d")
        (at / "d").mkdir()
        tree.write(at / "d/only")

    found = tree.change(change)
    assert (found.trees, paths(found)) == (["d"], ["d", "d/only"])
    assert not tree.change(lambda at: None)
    found = tree.change(change)
    assert "d/only" in paths(found)
    assert found.removed == []


def test_a_directory_of_which_something_was_committed_is_made_anew(tree: Tree) -> None:
    tree.change(lambda at: tree.write(at / "d/inner/y", "changed"))

    def change(at: Path) -> None:
        shutil.rmtree(at / "d")
        (at / "d").mkdir()

    found = tree.change(change)
    assert (found.trees, paths(found)) == (["d"], ["d"])
    assert sorted(found.removed) == ["d/inner", "d/inner/y"]


def test_a_renamed_directory_brings_what_was_in_it(tree: Tree) -> None:
    found = tree.change(lambda at: os.rename(at / "d", at / "r"))
    assert found.trees == ["d"]
    assert paths(found) == ["r", "r/inner", "r/inner/y", "r/top", "r/x"]
    for item in found.found:
        if item.kind == FILE:
            with opened(tree.upper, item) as descriptor:
                assert os.read(descriptor, 10) == b"x"
    assert not tree.change(lambda at: None)
    found = tree.change(lambda at: os.unlink(at / "r/x"))
    assert found.removed == ["r/x"]
    assert found.found == []
    found = tree.change(lambda at: (at / "r/inner/y").write_text("new"))
    assert paths(found) == ["r/inner", "r/inner/y"]
    found = tree.change(lambda at: os.rename(at / "r/inner", at / "again"))
    assert paths(found) == ["again", "again/y"]
    assert sorted(found.removed) == ["r/inner", "r/inner/y"]
    shutil.rmtree(tree.upper / "again")


def test_what_a_renamed_directory_lost_before(tree: Tree) -> None:
    def change(at: Path) -> None:
        os.unlink(at / "d/x")
        shutil.rmtree(at / "d/inner")
        tree.write(at / "d/inner/fresh")
        os.rename(at / "d", at / "r")

    assert paths(tree.change(change)) == ["r", "r/inner", "r/inner/fresh", "r/top"]


def test_links_out_of_the_tree_are_only_noted(tree: Tree, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    found = tree.change(lambda at: os.symlink(secret, at / "link"))
    assert [(item.path, item.target) for item in found.found] == [("link", str(secret))]
    (tree.upper / "d").mkdir()
    item = tree.change(lambda at: tree.write(at / "d/file")).found[-1]
    shutil.rmtree(tree.upper / "d")
    (tree.upper / "d").symlink_to(secret)  # swapped between looking and reading
    reading = opened(tree.upper, item)
    with pytest.raises(FileNotFoundError):
        reading.__enter__()


def test_special_files_are_left_out(tree: Tree) -> None:
    assert not tree.change(lambda at: os.mkfifo(at / "fifo"))


def test_a_file_that_becomes_a_directory_and_back(tree: Tree) -> None:
    def to_directory(at: Path) -> None:
        os.unlink(at / "a")
        tree.write(at / "a/x")

    found = tree.change(to_directory)
    assert paths(found) == ["a", "a/x"]

    def to_file(at: Path) -> None:
        shutil.rmtree(at / "a")
        (at / "a").write_text("file")

    found = tree.change(to_file)
    assert paths(found) == ["a"]
    assert found.removed == ["a/x"]
