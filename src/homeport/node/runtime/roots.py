"""Root file systems of containers, mounted before it is known for which.

All that differs between containers of the same layers is where their writes are found and what
three generated files say. So a few overlays wait for each set of layers that containers were lately
started from, mounted nowhere: an open descriptor is all that holds them, and with the node's end
they are gone. Their directories are moved to the container's when one is used.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from homeport.node.runtime.ahead import Ahead
from homeport.node.runtime.records import remove_tree
from homeport.node.runtime.rootfs import lay_out_generated
from homeport.node.runtime.stage import Stage

MOST: Final = 32
"""So many wait at most, of all sets of layers."""
_PAUSE_S: Final = 0.01

Layers = tuple[Path, ...]
"""Read-only directories, topmost first."""


class Root:
    """An overlay that is mounted nowhere, and the directories that are its alone.

    ``path`` holds its work directory and the generated files, which are its topmost layer.
    """

    def __init__(self, stage: Stage, layers: Layers, path: Path, upper: Path) -> None:
        """Make it under ``upper``, which is made if it is missing.

        Blocks, in a thread of the stage. Raises ``OSError`` and ``ContainerStartError``, and leaves
        nothing then.
        """
        self.layers = layers
        self.path = path
        self.upper = upper
        path.mkdir(mode=0o700)
        self.made_upper = not upper.is_dir()
        try:
            if self.made_upper:
                upper.mkdir()
                upper.chmod(0o755)
            (path / "work").mkdir(mode=0o700)
            lay_out_generated(self.generated)
            self._seen = _identities(layers)
            self.tree = stage.root_tree([self.generated, *layers], upper, path / "work")
            """The descriptor, until ``close``."""
        except BaseException:
            if self.made_upper:
                remove_tree(upper)
            remove_tree(path)
            raise

    @property
    def generated(self) -> Path:
        """See ``rootfs.write_generated``."""
        return self.path / "generated"

    def is_current(self) -> bool:
        """Whether its layers are still those that have these names."""
        try:
            return self._seen == _identities(self.layers)
        except OSError:
            return False

    def move(self, path: Path, upper: Path) -> None:
        """Move its directories. Raises ``OSError``, if to another file system before anything."""
        os.rename(self.path, path)
        os.rename(path / self.upper.relative_to(self.path), upper)
        self.path, self.upper = path, upper

    def close(self) -> None:
        """Nothing more is started with it. Idempotent."""
        if self.tree >= 0:
            os.close(self.tree)
            self.tree = -1

    def discard(self) -> None:
        """Remove one that was not used. Blocks."""
        self.close()
        remove_tree(self.path)


class Roots:
    """Those that wait, below ``place``, which is on the file system of what containers write."""

    def __init__(self, place: Path, stage: Stage, most: int = MOST) -> None:
        self._place = place
        self._stage = stage
        self._token = f"{os.urandom(8).hex()}-"
        self._made = itertools.count()
        self.used = 0
        """So many starts had one that waited."""
        self._ahead = Ahead[Layers, Root](most, self._prepare, self._discard, pause_s=_PAUSE_S)

    def take(self, layers: Layers) -> Root | None:
        """One that waits, the caller's from now on. For threads of the stage: blocks."""
        while (root := self._ahead.pop(layers)) is not None:
            if root.is_current():
                return root
            root.discard()
        return None

    def note(self, layers: Layers, *, was_ready: bool) -> None:
        """A container was started with these layers, with a root that waited or without."""
        self.used += was_ready
        self._ahead.note(layers, was_ready=was_ready)

    async def prepare(self, layers: Layers) -> None:
        """Have one wait, whatever was asked for; until it does, or could not."""
        await self._ahead.prepare(layers)

    async def close(self) -> None:
        """Remove all. Idempotent."""
        await self._ahead.close()

    def sweep(self) -> None:
        """Remove what others left at this place. Blocks."""
        for path in self._place.iterdir():
            if not path.name.startswith(self._token):
                remove_tree(path)

    async def _prepare(self, layers: Layers) -> Root:
        return await self._stage.run(lambda: self._make(layers))

    def _make(self, layers: Layers) -> Root:
        path = self._place / f"{self._token}{next(self._made)}"
        return Root(self._stage, layers, path, path / "upper")

    async def _discard(self, root: Root) -> None:
        await self._stage.run(root.discard)


def _identities(layers: Sequence[Path]) -> list[tuple[int, int]]:
    """What tells a directory from a later one of the same name, while the first is mounted."""
    return [(found.st_dev, found.st_ino) for found in map(os.stat, layers)]
