"""The table of files, and the changes of one volume's tree inside one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.link.volumes import DIRECTORY, GONE, VolumeEntry
from homeport.storage.database import metadata
from homeport.storage.dialects import insert, pairs
from homeport.volumes.model import ancestors, hex_hashes, join, split

volume_files = sa.Table(
    "volume_files",
    metadata,
    sa.Column("volume_id", sa.String, primary_key=True),
    sa.Column("parent", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("kind", sa.Integer, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mode", sa.Integer, nullable=False),
    sa.Column("mtime", sa.Double, nullable=False),
    sa.Column("hashes", sa.LargeBinary, nullable=False),
    sa.Column("target", sa.String, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Index("ix_volume_files_revision", "volume_id", "revision"),
    sqlite_with_rowid=False,
)
"""One row a path; what was removed stays as ``GONE`` with the time of its removal as ``mtime``."""

DIRECTORY_MODE: Final = 0o755

_columns = volume_files.c
_insert = insert(volume_files)
_UPSERT: Final = _insert.on_conflict_do_update(
    index_elements=["volume_id", "parent", "name"],
    set_={
        name: getattr(_insert.excluded, name)
        for name in ("kind", "size", "mode", "mtime", "hashes", "target", "revision")
    },
)
_ROWS_AT_ONCE: Final = 10_000


class Tree:
    """The files of ``volume_id``. Changes get the number ``revision``."""

    def __init__(self, connection: Connection, volume_id: str, revision: int = 0) -> None:
        self._connection = connection
        self._volume_id = volume_id
        self._revision = revision
        self._live = (_columns.volume_id == volume_id) & (_columns.kind != GONE)

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    def get(self, path: str) -> VolumeEntry | None:
        """What is at a normalised path (the root is a directory, always)."""
        if not path:
            return VolumeEntry("", DIRECTORY, mode=DIRECTORY_MODE)
        parent, name = split(path)
        query = sa.select(volume_files).where(
            self._live, _columns.parent == parent, _columns.name == name
        )
        row = self._connection.execute(query).first()
        return None if row is None else _entry(row)

    def get_many(self, paths: Iterable[str]) -> dict[str, VolumeEntry]:
        """What is at these paths; missing ones are left out."""
        wanted = [split(path) for path in paths if path]
        table, parent, name = pairs(self._connection, wanted)
        # Not a join: without statistics SQLite may read the whole volume for each of the paths.
        given = sa.select(parent, name).select_from(table)
        query = sa.select(volume_files).where(
            self._live, sa.tuple_(_columns.parent, _columns.name).in_(given)
        )
        entries = map(_entry, self._connection.execute(query))
        return {entry.path: entry for entry in entries}

    def children(self, path: str) -> Iterator[VolumeEntry]:
        """What is directly in a directory, by name."""
        return self._select(_columns.parent == path)

    def descendants(self, path: str) -> Iterator[VolumeEntry]:
        """Everything below a directory; each directory comes before what is in it."""
        return self._select(_below(path))

    def has_children(self, path: str) -> bool:
        query = sa.select(sa.literal(1)).where(self._live, _columns.parent == path).limit(1)
        return self._connection.execute(query).first() is not None

    def changed_since(self, revision: int) -> Iterator[VolumeEntry]:
        """What was set or removed after ``revision``."""
        query = sa.select(volume_files).where(
            _columns.volume_id == self._volume_id, _columns.revision > revision
        )
        return map(_entry, self._connection.execute(query))

    def _select(self, condition: sa.ColumnElement[bool]) -> Iterator[VolumeEntry]:
        query = (
            sa.select(volume_files)
            .where(self._live, condition)
            .order_by(_columns.parent, _columns.name)
        )
        result = self._connection.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE})
        return map(_entry, result)

    # ── changing ────────────────────────────────────────────────────────────────────────────

    def put(self, entries: Iterable[VolumeEntry]) -> None:
        """Set these paths, whatever is there; their directories must exist."""
        rows: list[Mapping[str, Any]] = []
        for entry in entries:
            rows.append(self._row(entry))
            if len(rows) >= _ROWS_AT_ONCE:
                self._connection.execute(_UPSERT, rows)
                rows = []
        if rows:
            self._connection.execute(_UPSERT, rows)

    def make_directories(self, paths: Iterable[str], now: float) -> None:
        """Make these directories where nothing is; what is there stays as it is."""
        wanted = set(paths)
        missing = wanted - self.get_many(wanted).keys()
        self.put(
            VolumeEntry(path, DIRECTORY, mode=DIRECTORY_MODE, mtime=now) for path in sorted(missing)
        )

    def remove(self, path: str, now: float) -> None:
        """Remove what is at ``path`` with everything below it."""
        parent, name = split(path)
        itself = (_columns.parent == parent) & (_columns.name == name)
        self._bury(itself | _below(path), now)

    def remove_as_of(self, path: str, base: int, now: float) -> None:
        """Remove what was at and below ``path`` at revision ``base`` and did not change since.

        Directories that hold something newer stay.
        """
        known = _columns.revision <= base
        parent, name = split(path)
        itself = (_columns.parent == parent) & (_columns.name == name) if path else sa.false()
        self._bury((itself | _below(path)) & known & (_columns.kind != DIRECTORY), now)
        folders = (
            sa.select(_columns.parent, _columns.name)
            .where(self._live, (itself | _below(path)) & known & (_columns.kind == DIRECTORY))
            .order_by(_columns.parent.desc(), _columns.name.desc())
        )
        for row in self._connection.execute(folders).all():  # what is inside comes first
            if not self.has_children(join(row.parent, row.name)):
                self._bury((_columns.parent == row.parent) & (_columns.name == row.name), now)

    def _bury(self, condition: sa.ColumnElement[bool], now: float) -> None:
        statement = (
            sa.update(volume_files)
            .where(self._live, condition)
            .values(
                kind=GONE, size=0, mode=0, mtime=now, hashes=b"", target="", revision=self._revision
            )
        )
        self._connection.execute(statement)

    def _row(self, entry: VolumeEntry) -> dict[str, Any]:
        parent, name = split(entry.path)
        return {
            "volume_id": self._volume_id,
            "parent": parent,
            "name": name,
            "kind": entry.kind,
            "size": entry.size,
            "mode": entry.mode,
            "mtime": entry.mtime,
            "hashes": entry.hashes,
            "target": entry.target,
            "revision": self._revision,
        }

    # ── for nodes and housekeeping ──────────────────────────────────────────────────────────

    def delta(self, since: int) -> list[VolumeEntry]:
        """What changed after ``since``, with the directories it is in, in the order of paths."""
        changed = {entry.path: entry for entry in self.changed_since(since)}
        above = ancestors(changed) - changed.keys()
        changed.update(self.get_many(above))
        return [changed[path] for path in sorted(changed, key=_sort_key)]

    @staticmethod
    def contents(connection: Connection) -> set[str]:
        """Hashes, in hex, of the contents of all files of all volumes."""
        query = sa.select(_columns.hashes).where(_columns.hashes != b"").distinct()
        result = connection.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE})
        found: set[str] = set()
        for hashes in result.scalars():
            found.update(hex_hashes(hashes))
        return found

    @staticmethod
    def forget_removals(connection: Connection, before: float) -> dict[str, tuple[int, int]]:
        """Drop what was removed before that time: newest revision and count, by volume."""
        condition = (_columns.kind == GONE) & (_columns.mtime < before)
        query = (
            sa.select(_columns.volume_id, sa.func.max(_columns.revision), sa.func.count())
            .where(condition)
            .group_by(_columns.volume_id)
        )
        found = {row[0]: (int(row[1]), int(row[2])) for row in connection.execute(query)}
        connection.execute(sa.delete(volume_files).where(condition))
        return found


def _below(path: str) -> sa.ColumnElement[bool]:
    """Rows of what is below ``path``; '0' is the character behind '/'."""
    if not path:
        return sa.true()
    inside = (_columns.parent > path + "/") & (_columns.parent < path + "0")
    return (_columns.parent == path) | inside


def _entry(row: Any) -> VolumeEntry:
    return VolumeEntry(
        join(row.parent, row.name),
        row.kind,
        row.size,
        row.mode,
        row.mtime,
        row.hashes,
        row.target,
        row.revision,
    )


def _sort_key(path: str) -> list[str]:
    return path.split("/")
