"""Looks whether volumes are whole: every content there and undamaged, every tree in order.

``python -m homeport.volumes.fsck HOME`` prints what it found as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.kernel.errors import HomeportError
from homeport.link.volumes import DIRECTORY, FILE, HASH_BYTES, VolumeEntry, block_count
from homeport.objects.service import names_in
from homeport.settings import load
from homeport.storage.inspection import Inspection, inspect
from homeport.storage.opening import open_reader
from homeport.volumes.blocks import EMPTY_HEX
from homeport.volumes.model import VOLUME, split
from homeport.volumes.store import volumes
from homeport.volumes.tree import Tree


class Damage(msgspec.Struct, frozen=True):
    """What is wrong with one path. ``volume`` is the volume's name, or its id if it has none."""

    volume: str
    path: str
    problem: str


class Report(msgspec.Struct, frozen=True):
    """What was looked at, and what is wrong. ``size_bytes`` counts each content once."""

    volumes: int
    files: int
    contents: int
    size_bytes: int
    damages: list[Damage]


def check(engine: sa.Engine, contents: Inspection, *, quick: bool = False) -> Report:
    """Look at all volumes of an installation; nothing is changed, the server may run.

    ``quick`` does not read the contents, only sees that they are there.
    """
    try:
        with engine.connect() as connection:
            return _Check(connection, contents, quick).run()
    finally:
        engine.dispose()


class _Check:
    def __init__(self, connection: Connection, contents: Inspection, quick: bool) -> None:
        self._connection = connection
        self._inspection = contents
        self._quick = quick
        self._contents: dict[str, tuple[int, str]] = {}
        self._damages: list[Damage] = []
        self._count = 0

    def run(self) -> Report:
        names = names_in(self._connection, VOLUME)
        found = self._connection.execute(sa.select(volumes.c.id, volumes.c.revision)).all()
        for volume_id, revision in found:
            self._volume(volume_id, revision, names.get(volume_id) or volume_id)
        return Report(
            len(found),
            self._count,
            len(self._contents),
            sum(size for size, _ in self._contents.values()),
            self._damages,
        )

    def _volume(self, volume_id: str, revision: int, label: str) -> None:
        def damaged(path: str, problem: str) -> None:
            self._damages.append(Damage(label, path, problem))

        kinds: dict[str, int] = {"": DIRECTORY}
        for entry in Tree(self._connection, volume_id).descendants(""):
            if entry.kind == DIRECTORY:
                kinds[entry.path] = DIRECTORY
            else:
                self._count += 1
            if split(entry.path)[0] not in kinds:
                damaged(entry.path, "it is in no directory")
            if entry.revision > revision:
                damaged(entry.path, f"revision {entry.revision} is newer than the volume's")
            if entry.kind == FILE:
                self._file(entry, damaged)

    def _file(self, entry: VolumeEntry, damaged: Callable[[str, str], None]) -> None:
        count, rest = divmod(len(entry.hashes), HASH_BYTES)
        wanted = block_count(entry.size)
        if rest or count not in (wanted, 1 if entry.size else 0):
            damaged(entry.path, f"{entry.size} bytes need {wanted} blocks, but it has {count}")
            return
        for sha256, offset, length in entry.pieces():
            size, problem = self._content(sha256.hex())
            if not problem and size > length:
                problem = f"has {size} bytes, more than the {length} of its place"
            if problem:
                damaged(entry.path, f"the content {sha256.hex()} at byte {offset} {problem}")

    def _content(self, sha256: str) -> tuple[int, str]:
        """Size of a content, and what is wrong with it."""
        known = self._contents.get(sha256)
        if known is None:
            known = self._contents[sha256] = self._look_at(sha256)
        return known

    def _look_at(self, sha256: str) -> tuple[int, str]:
        if sha256 == EMPTY_HEX:
            return 0, ""
        try:
            size = self._inspection.size(sha256)
            if size is None:
                return 0, "is missing"
            if not self._quick and self._inspection.digest(sha256) != sha256:
                return size, "is damaged: its bytes have another hash"
        except FileNotFoundError:
            return 0, "is missing"
        return size, ""


@click.command()
@click.argument("home", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True)
def main(home: Path, quick: bool) -> None:
    """Print the report as JSON."""
    try:
        settings = load(home)
        report = check(open_reader(settings), inspect(settings), quick=quick)
    except HomeportError as error:
        raise click.ClickException(error.message) from None
    click.echo(msgspec.json.encode(report))


if __name__ == "__main__":
    main()
