"""The database: one writer with group commit, readers beside it.

All changes go through one thread that gathers what is waiting into one transaction: a caller's
``write`` or ``append`` returns when that transaction is committed, so *acknowledged means durable*
and a hundred waiting callers share one commit. Tables are SQLAlchemy Core tables on ``metadata``
(each feature's ``store.py`` owns its own); the schema itself comes from ``migrations/``.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from homeport.kernel.errors import ExhaustedError, UnavailableError
from homeport.storage.dialects import (
    Durability,
    checkpoints_of,
    create_engine,
    is_full,
    is_lost,
    open_and_lock,
    savepoint,
)
from homeport.storage.migrations import migrate
from homeport.storage.prepared import Prepared

T = TypeVar("T")
Row = Mapping[str, Any]
Step = tuple[sa.Executable, Sequence[Row]]
"""A statement and the rows to execute it with."""

_GROUP_MAX = 2_000
"""Operations in one transaction: bounds how long a commit can keep the first waiter."""

_FULL_RETRY_S = 0.5
"""How often what waits for room on a full disk is tried again."""
_DISK_IS_FULL = (
    "The disk of the Homeport server is full: nothing more can be stored. "
    "Free some space there; it goes on by itself then."
)

_AWAY = (
    "The Homeport server cannot reach its database. It tries again with the next request; "
    "see that PostgreSQL runs and that the server reaches it (homeport doctor)."
)

log = structlog.get_logger(__name__)

metadata = sa.MetaData()
"""Every table of the installation."""

needs_room: ContextVar[bool] = ContextVar("needs_room", default=False)
"""Whether what is appended now is refused on a full disk rather than kept waiting for room: somebody
asks for it and can be told."""


@dataclass(slots=True)
class _Write:
    function: Callable[[Connection], Any]
    future: asyncio.Future[Any]


@dataclass(slots=True)
class _Append:
    steps: Sequence[Step]
    future: asyncio.Future[Any]
    may_wait: bool

    def has_shape_of(self, other: _Append) -> bool:
        """Whether both execute the same statements in the same order."""
        return len(self.steps) == len(other.steps) and all(
            mine[0] is theirs[0] for mine, theirs in zip(self.steps, other.steps, strict=True)
        )


@dataclass(slots=True)
class _Stop:
    pass


class Database:
    """The installation's database; created by ``main.py``, used by the features' stores.

    ``durability``, of SQLite: ``process`` survives the death of any process (the default),
    ``power`` also survives power loss, at the price of an ``fsync`` a commit. PostgreSQL keeps
    commits as it is configured to. ``on_lost`` is called on the writer's thread when the
    connection to it ended: nothing can be written from then on.

    On a full disk a ``write`` raises ``ExhaustedError``. An ``append`` waits for room, as what it
    tells has happened already, unless it was made where ``needs_room`` holds.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: Durability = "process",
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._on_lost = on_lost
        self._queue: queue.SimpleQueue[_Write | _Append | _Stop] = queue.SimpleQueue()
        self._engine: Engine = create_engine(url, durability=durability)
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="db-read")
        self._prepared = Prepared()
        self._held: list[_Write | _Append] = []  # appends for which there was no room yet
        self._is_full = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._checkpoints = checkpoints_of(self._engine)

    @classmethod
    def sqlite(cls, path: Path, *, durability: Durability = "process") -> Database:
        """The default database: one file at ``path``."""
        return cls(f"sqlite:///{path}", durability=durability)

    async def start(self) -> None:
        """Bring the schema up to date and start the writer."""
        self._loop = asyncio.get_running_loop()
        connection = await asyncio.to_thread(open_and_lock, self._engine)
        try:
            await asyncio.to_thread(migrate, self._engine)
        except BaseException:
            connection.close()
            raise
        self._thread = threading.Thread(
            target=self._write_loop, args=(connection,), name="db-write", daemon=True
        )
        self._thread.start()
        if self._checkpoints is not None:
            self._checkpoints.start()

    async def stop(self) -> None:
        """Commit what is queued and close."""
        if self._thread is not None:
            self._queue.put(_Stop())
            await asyncio.to_thread(self._thread.join)
            self._thread = None
            if self._checkpoints is not None:
                await asyncio.to_thread(self._checkpoints.stop)
        self._readers.shutdown(wait=True)
        self._engine.dispose()

    async def write(self, function: Callable[[Connection], T]) -> T:
        """Run ``function`` in a (shared) transaction; its result, once committed.

        If it raises, its own changes alone are undone and the exception is the caller's.
        """
        future: asyncio.Future[T] = self._new_future()
        self._queue.put(_Write(function, future))
        return await future

    def append(self, statement: sa.Executable, rows: Sequence[Row]) -> asyncio.Future[None]:
        """Queue ``statement`` for ``rows``; the future is done when they are committed.

        Cheaper than ``write``: neighbouring appends of the same statement become one execution.
        They must not fail by themselves (use ``on conflict do nothing`` or upserts).
        """
        return self.append_all([(statement, rows)])

    def append_all(self, steps: Sequence[Step]) -> asyncio.Future[None]:
        """As ``append``, for several statements that are committed together or not at all.

        Neighbours with the same statements are executed statement by statement, so the order of
        two appends of one shape must not matter but within a statement.
        """
        future: asyncio.Future[None] = self._new_future()
        self._queue.put(_Append(steps, future, may_wait=not needs_room.get()))
        return future

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Run a query on a reader thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, self._read_sync, function
        )

    def _read_sync(self, function: Callable[[Connection], T]) -> T:
        try:
            with self._engine.connect() as connection:
                return function(connection)
        except DBAPIError as error:
            if is_lost(error):
                raise UnavailableError(_AWAY) from error
            raise

    def _new_future(self) -> asyncio.Future[Any]:
        if self._thread is None:
            raise UnavailableError("the database is not open")
        return asyncio.get_running_loop().create_future()

    # ── the writer thread ───────────────────────────────────────────────────────────────────

    def _write_loop(self, connection: Connection) -> None:
        with connection:
            while True:
                group, stop = self._next_group()
                if group:
                    self._commit_group(connection, group, stopping=stop)
                    self._committed(connection)
                if stop:
                    return

    def _committed(self, connection: Connection) -> None:
        if self._checkpoints is not None:
            driver: Any = connection.connection.driver_connection
            self._checkpoints.committed(driver)

    def _next_group(self) -> tuple[list[_Write | _Append], bool]:
        group, self._held = self._held, []
        try:
            item = self._queue.get(timeout=_FULL_RETRY_S if group else None)
        except queue.Empty:
            return group, False
        while True:
            if isinstance(item, _Stop):
                return group, True
            group.append(item)
            if len(group) >= _GROUP_MAX:
                return group, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, False

    def _commit_group(
        self, connection: Connection, group: list[_Write | _Append], *, stopping: bool
    ) -> None:
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        try:
            with connection.begin():
                index = 0
                while index < len(group):
                    item = group[index]
                    if isinstance(item, _Append):
                        index = self._execute_appends(connection, group, index, outcomes)
                    else:
                        index += 1
                        try:
                            with savepoint(connection):
                                outcomes.append((item.future, item.function(connection), None))
                        except Exception as error:  # the caller's, raised at its await
                            if is_full(error) or is_lost(error):
                                raise
                            outcomes.append((item.future, None, error))
            if self._is_full:
                log.info("there is room on the disk again")
            self._is_full = False
        except Exception as error:
            if is_lost(error) and self._on_lost is not None and not stopping:
                # What was committed is not known, and memory is ahead of it: as after a crash.
                log.critical("the connection to the database is lost", error=str(error))
                self._on_lost()
                return
            if (is_full(error) or len(group) > 1) and not is_lost(error) and not stopping:
                outcomes = self._commit_one_by_one(connection, group, error)
            else:
                log.exception("commit failed", operations=len(group))
                outcomes = [(item.future, None, error) for item in group]
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _commit_one_by_one(
        self, connection: Connection, group: list[_Write | _Append], error: Exception
    ) -> list[tuple[asyncio.Future[Any], Any, BaseException | None]]:
        """After one failed: the others are not to fail with it.

        On a full disk some may fit, or make room. Appends that do not are held, in their order.
        """
        if not is_full(error):
            log.error("a statement failed; its neighbours are committed alone", error=str(error))
        elif not self._is_full:
            log.error("the disk is full")
        self._is_full = is_full(error)
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        for item in group:
            if isinstance(item, _Append) and item.may_wait and self._held:
                self._held.append(item)
                continue
            value: Any = None
            try:
                with connection.begin():
                    if isinstance(item, _Append):
                        self._execute_appends(connection, [item], 0, [])
                    else:
                        value = item.function(connection)
                outcomes.append((item.future, value, None))
            except Exception as error:
                if not is_full(error):
                    outcomes.append((item.future, None, error))
                elif isinstance(item, _Append) and item.may_wait:
                    self._held.append(item)
                else:
                    outcomes.append((item.future, None, ExhaustedError(_DISK_IS_FULL)))
        return outcomes

    def _execute_appends(
        self,
        connection: Connection,
        group: list[_Write | _Append],
        index: int,
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]],
    ) -> int:
        first = group[index]
        assert isinstance(first, _Append)
        alike: list[_Append] = []
        while index < len(group):
            item = group[index]
            if not isinstance(item, _Append) or not item.has_shape_of(first):
                break
            alike.append(item)
            outcomes.append((item.future, None, None))
            index += 1
        for number, (statement, _) in enumerate(first.steps):
            rows = [row for item in alike for row in item.steps[number][1]]
            if rows:
                self._prepared.execute(connection, statement, rows)
        return index


def _resolve(outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for future, value, error in outcomes:
        if future.done():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
