"""What differs between the databases, SQLite and PostgreSQL; nothing else asks which one it is."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import event

# SQLite took its form of an upsert from there, and either compiler takes it.
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from homeport.kernel.errors import ConflictError, InvalidError, UnavailableError
from homeport.storage.checkpoints import PRAGMAS, Checkpoints

__all__ = [
    "BytesDefault",
    "Durability",
    "await_unlocked",
    "checkpoints_of",
    "create_engine",
    "insert",
    "is_full",
    "is_lost",
    "lock_holder",
    "make_comparable",
    "open_and_lock",
    "pairs",
    "savepoint",
    "see",
]

Durability = Literal["process", "power"]

_LOCK_KEY: Final = 0x686F6D65706F7274
"""Of the advisory lock that a server holds on its database: "homeport"."""
_LOCK_WAIT_S: Final = 15.0
"""How long the database may take to notice that a former server died."""
_CONNECT_S: Final = 30.0
"""How long a server that starts waits for a database that is not there yet."""
_PAUSE_S: Final = 0.25
_DISK_FULL: Final = "53100"
_WAIT_FOR: Final = (
    *("Connection refused", "No such file or directory", "timeout expired", "is starting up"),
    *("is shutting down", "in recovery mode", "server closed the connection", "not yet accepting"),
)
"""Words of the driver for what may pass; anything else does not mend itself."""


# ── opening ─────────────────────────────────────────────────────────────────────────────────────


def create_engine(url: str, *, durability: Durability = "process") -> Engine:
    """The engine for ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST:PORT/NAME``.

    Raises ``InvalidError`` for another URL, or if the driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise InvalidError(_not_a_url()) from None
    if parsed.drivername == "sqlite":
        engine = sa.create_engine(parsed, pool_size=4, max_overflow=2)
        event.listen(engine, "connect", _sqlite_configuration(durability))
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise InvalidError(_not_a_url())
    try:
        engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=4,
            max_overflow=2,
            # As in SQLite, all queries of one read see the same state.
            isolation_level="REPEATABLE READ",
            connect_args={
                "application_name": f"homeport {socket.gethostname()} {os.getpid()}",
                "connect_timeout": 10,
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                "keepalives_count": 3,
            },
        )
    except (ImportError, NoSuchModuleError):
        raise InvalidError(
            "database_url needs the driver of PostgreSQL: pip install 'homeport[postgresql]'"
        ) from None
    event.listen(engine, "connect", _configure_postgresql)
    return engine


def _not_a_url() -> str:  # never the URL itself: it has the password
    return "database_url has to be postgresql://USER:PASSWORD@HOST:PORT/NAME, or empty for SQLite"


def _sqlite_configuration(durability: Durability) -> Callable[[Any, Any], None]:
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's begin event opens transactions itself
        synchronous = "FULL" if durability == "power" else "NORMAL"
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "busy_timeout=10000",
            "foreign_keys=ON",
            "cache_size=-65536",
            *PRAGMAS,
        ):
            connection.execute(f"PRAGMA {pragma}")

    return configure


def _begin_sqlite(connection: Connection) -> None:
    # The one writer takes the write lock at once; readers see a snapshot until they finish.
    driver: Any = connection.connection.driver_connection
    driver.execute("BEGIN")


def _configure_postgresql(connection: Any, _record: Any) -> None:
    from psycopg.types.string import StrBinaryDumper, StrDumper

    # Its texts cannot have the character 0, which programs do print: it becomes the sign for it.
    class WithoutZeros(StrDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "␀"))

    class BinaryWithoutZeros(StrBinaryDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "␀"))

    connection.adapters.register_dumper(str, BinaryWithoutZeros)
    connection.adapters.register_dumper(str, WithoutZeros)


def open_and_lock(engine: Engine) -> Connection:
    """The writer's connection, with the database locked against other servers (blocking).

    A file is locked by the home it is in. Raises ``UnavailableError`` if there is no database,
    ``ConflictError`` if another server has it; both say what to do.
    """
    connection = _connected(engine)
    if engine.dialect.name == "sqlite":
        return connection
    deadline = time.monotonic() + _LOCK_WAIT_S
    lock = sa.select(sa.func.pg_try_advisory_lock(_LOCK_KEY))
    while not connection.execute(lock).scalar():
        holder = _holder(connection)
        connection.rollback()
        if time.monotonic() > deadline:
            connection.close()
            raise ConflictError(
                f"another Homeport server works on the database {_shown(engine)}{holder}: stop it, "
                "or give this one a database of its own (database_url)"
            )
        time.sleep(_PAUSE_S)
    connection.commit()
    return connection


def lock_holder(engine: Engine) -> str | None:
    """The server that has the PostgreSQL, as the end of a sentence; ``None`` if none has it.

    Raises ``UnavailableError`` if there is no database (blocking).
    """
    with _alone(engine) as connection:
        if connection.execute(sa.select(sa.func.pg_try_advisory_lock(_LOCK_KEY))).scalar():
            return None
        return _holder(connection)


def await_unlocked(engine: Engine) -> None:
    """Return once no server has the PostgreSQL (blocking; the database wakes it).

    Raises ``UnavailableError`` if the connection to it is lost meanwhile.
    """
    with _alone(engine) as connection:
        for limit in ("lock_timeout", "statement_timeout"):
            connection.execute(sa.text(f"SET {limit} = 0"))
        connection.execute(sa.select(sa.func.pg_advisory_lock(_LOCK_KEY)))


@contextlib.contextmanager
def _alone(engine: Engine) -> Generator[Connection]:
    """A connection that ends afterwards, and with it what it has locked."""
    connection = _connected(engine, wait_s=0.0).execution_options(isolation_level="AUTOCOMMIT")
    try:
        yield connection
    except DBAPIError as error:
        if is_lost(error):
            raise UnavailableError(
                f"the connection to the database {_shown(engine)} is lost"
            ) from None
        raise
    finally:
        connection.invalidate()
        connection.close()


def see(engine: Engine) -> str:
    """What a PostgreSQL is, in words, and that a server may work in it.

    Raises ``UnavailableError``, ``ConflictError`` with what to do.
    """
    query = (
        "SELECT current_setting('server_version'), has_schema_privilege(current_schema(), 'CREATE'), "
        "current_setting('server_encoding')"
    )
    try:
        with _connected(engine, wait_s=0.0) as connection:
            version, may_create, encoding = connection.execute(sa.text(query)).one()
    finally:
        engine.dispose()
    if not may_create:
        raise ConflictError(
            f"the user of {_shown(engine)} may not create tables there: grant it CREATE on the schema"
        )
    if encoding != "UTF8":
        raise ConflictError(f"the database {_shown(engine)} has the encoding {encoding}, not UTF8")
    return f"PostgreSQL {version} at {_shown(engine)}"


def _connected(engine: Engine, *, wait_s: float = _CONNECT_S) -> Connection:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return engine.connect()
        except OperationalError as error:
            words = " ".join(str(error.orig).split()).rstrip("?.")
            may_pass = any(mark in words for mark in _WAIT_FOR)
            if engine.dialect.name == "sqlite":
                raise
            if may_pass and time.monotonic() < deadline:
                time.sleep(_PAUSE_S)
                continue
            raise UnavailableError(
                f"the database {_shown(engine)} cannot be opened: {words}. See that PostgreSQL runs "
                "there, that the database exists and that database_url has its user and password"
            ) from None


def _holder(connection: Connection) -> str:
    query = sa.text(
        "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (l.classid::bigint << 32 | l.objid::bigint) = :key"
    )
    name = connection.execute(query, {"key": _LOCK_KEY}).scalar()
    return f" ({name})" if name else ""


def _shown(engine: Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=True)


def checkpoints_of(engine: Engine) -> Checkpoints | None:
    """What keeps the database's log short, where the database does not do so itself."""
    if engine.dialect.name != "sqlite":
        return None
    return Checkpoints(Path(str(engine.url.database)))


# ── schema ──────────────────────────────────────────────────────────────────────────────────────


class BytesDefault(sa.ColumnElement[bytes]):
    """A constant of bytes, for ``server_default``."""

    inherit_cache = False
    type = sa.LargeBinary()

    def __init__(self, value: bytes) -> None:
        self.value = value


@compiles(BytesDefault, "sqlite")
def _bytes_in_sqlite(element: BytesDefault, _compiler: SQLCompiler, **_: Any) -> str:
    return f"X'{element.value.hex()}'"


@compiles(BytesDefault, "postgresql")
def _bytes_in_postgresql(element: BytesDefault, _compiler: SQLCompiler, **_: Any) -> str:
    return f"'\\x{element.value.hex()}'::bytea"


def make_comparable(connection: Connection) -> None:
    """Let texts be compared by their code points everywhere, as ranges of paths need it."""
    if connection.dialect.name == "sqlite":
        return
    query = sa.text(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = current_schema() AND collation_name IS DISTINCT FROM 'C' "
        "AND data_type IN ('text', 'character varying')"
    )
    quote = connection.dialect.identifier_preparer.quote
    changes: dict[str, list[str]] = {}
    for table, column, kind in connection.execute(query).all():
        change = f'ALTER COLUMN {quote(column)} TYPE {kind} COLLATE "C"'
        changes.setdefault(table, []).append(change)
    for table, columns in changes.items():
        connection.execute(sa.text(f"ALTER TABLE {quote(table)} {', '.join(columns)}"))


# ── statements ──────────────────────────────────────────────────────────────────────────────────


def pairs(
    connection: Connection, wanted: Sequence[tuple[str, str]]
) -> tuple[sa.FromClause, sa.ColumnElement[str], sa.ColumnElement[str]]:
    """Any number of pairs of texts to join with, and the columns of their halves."""
    if connection.dialect.name == "sqlite":
        given = json.dumps(wanted)
        table = sa.func.json_each(sa.bindparam("pairs", given)).table_valued("value")
        first = sa.func.json_extract(table.c.value, "$[0]")
        return table, first, sa.func.json_extract(table.c.value, "$[1]")
    texts = ARRAY(sa.Text)
    unnested = sa.func.unnest(
        sa.bindparam("firsts", [first for first, _ in wanted], texts),
        sa.bindparam("seconds", [second for _, second in wanted], texts),
    )
    table = unnested.table_valued("first", "second").render_derived("pairs")
    return table, table.c.first, table.c.second


@contextlib.contextmanager
def savepoint(connection: Connection) -> Generator[None]:
    """Undoes what is changed inside, and that alone, if it raises.

    By hand where the driver allows it: ``begin_nested`` costs more than most of the writes.
    """
    if connection.dialect.name != "sqlite":
        with connection.begin_nested():
            yield
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("SAVEPOINT one_write")
    try:
        yield
    except BaseException:
        if driver.in_transaction:  # a full disk may have undone all of it already
            driver.execute("ROLLBACK TO one_write")
            driver.execute("RELEASE one_write")
        raise
    driver.execute("RELEASE one_write")


# ── errors ──────────────────────────────────────────────────────────────────────────────────────


def is_full(error: BaseException) -> bool:
    """Whether there was no room on the database's disk."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return cause.sqlite_errorcode == sqlite3.SQLITE_FULL
    return getattr(cause, "sqlstate", None) == _DISK_FULL


def is_lost(error: BaseException) -> bool:
    """Whether the connection to the database ended, or none could be made."""
    if not isinstance(error, DBAPIError):
        return False
    # Errors of PostgreSQL's own have a state; what has none went wrong on the way to it.
    on_the_way = isinstance(error, OperationalError) and not isinstance(error.orig, sqlite3.Error)
    return error.connection_invalidated or (
        on_the_way and getattr(error.orig, "sqlstate", None) is None
    )
