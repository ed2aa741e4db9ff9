"""Use cases of objects of one kind. All of them are in memory; changes go to the database first."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog
from sqlalchemy.engine import Connection

from homeport.environments.model import Environment
from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import AlreadyExistsError, HomeportError, NotFoundError
from homeport.objects.model import (
    CLOCK_SLACK_S,
    PAGE_MAX,
    TICK_S,
    Creation,
    Kind,
    StoredObject,
    check_name,
)
from homeport.objects.store import ObjectStore, names
from homeport.storage.operations import OperationLog

log = structlog.get_logger(__name__)

_RETRY_S: Final = 60.0
"""When an expired object could not be deleted it is tried again after that long."""

Recording = Callable[[Connection, StoredObject], None]
"""Writes what a feature records about a new object."""
Erasing = Callable[[Connection, Sequence[str]], None]
"""Deletes what a feature recorded about the objects with these ids."""


def nothing_to_erase(connection: Connection, object_ids: Sequence[str]) -> None:
    """The ``Erasing`` of a feature without rows of its own."""


Gone = Callable[[Sequence[StoredObject]], Awaitable[None]]


def names_in(connection: Connection, kind: Kind) -> dict[str, str]:
    """Names by id, as a database has them that no server of this process uses."""
    return names(connection, kind.key)


class Objects:
    """The installation's objects of one kind, for the feature that they belong to.

    ``erase`` deletes the feature's own rows in the transaction that deletes the objects.
    Ephemeral objects are deleted when no heartbeat came for ``ephemeral_timeout_s``; a restart
    of the server begins that time anew. Also register ``delete_of_environment`` with
    ``EnvironmentService.on_deleting``. ``start`` before use.
    """

    def __init__(
        self,
        kind: Kind,
        store: ObjectStore,
        clock: Clock,
        *,
        erase: Erasing,
        operations: OperationLog,
        ephemeral_timeout_s: float,
    ) -> None:
        self.kind = kind
        self._operations = operations
        self._store = store
        self._clock = clock
        self._erase = erase
        self._ephemeral_timeout_s = ephemeral_timeout_s
        self._by_id: dict[str, StoredObject] = {}
        self._by_name: dict[tuple[str, str], StoredObject] = {}
        self._named: dict[str, list[StoredObject]] = {}  # by environment, oldest first
        self._newest: dict[str, float] = {}
        self._beats: dict[str, float] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._expiring: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self._gone: list[Gone] = []

    async def start(self) -> None:
        """Load the objects."""
        for item in await self._store.load(self.kind.key):
            self._add(item)

    async def stop(self) -> None:
        """Let nothing expire any more."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._expiring:
            task.cancel()
        await asyncio.gather(*self._expiring, return_exceptions=True)

    def on_gone(self, callback: Gone) -> None:
        """Have ``callback`` told which objects were deleted, once they are."""
        self._gone.append(callback)

    # ── look-up (hot) ───────────────────────────────────────────────────────────────────────

    def get(self, object_id: str) -> StoredObject:
        """Raises ``NotFoundError``."""
        found = self._by_id.get(object_id)
        if found is None:
            raise NotFoundError(
                f"{self.kind.noun} {object_id[:40]!r} not found: it was deleted, was ephemeral and "
                "its client is gone, or the id is not one of this installation"
            )
        return found

    def find(self, object_id: str) -> StoredObject | None:
        """Like ``get``, but ``None`` for an id that is not known."""
        return self._by_id.get(object_id)

    def named(self, environment: Environment, name: str) -> StoredObject:
        """Raises ``NotFoundError``."""
        found = self._by_name.get((environment.environment_id, name))
        if found is None:
            raise NotFoundError(
                f"{self.kind.noun} {name[:100]!r} not found in environment {environment.name!r}"
            )
        return found

    def has_name(self, environment: Environment, name: str) -> bool:
        """Whether an object of the kind is called that."""
        return (environment.environment_id, name) in self._by_name

    def all(self) -> list[StoredObject]:
        """Every object of the kind, ephemeral ones too."""
        return list(self._by_id.values())

    def list(
        self, environment: Environment, *, created_before: float, count: int
    ) -> list[StoredObject]:
        """Named objects, newest first: ``count`` of them created before that time; 0 = all.

        A time that is no object's own is a client's clock: then a minute is added to it.
        """
        items = self._named.get(environment.environment_id, [])
        end = len(items)
        if created_before > 0:
            end = bisect_left(items, created_before, key=_created_at)
            if end == len(items) or items[end].created_at != created_before:
                end = bisect_left(items, created_before + CLOCK_SLACK_S, key=_created_at)
        begin = max(0, end - min(count, PAGE_MAX)) if count > 0 else 0
        return items[begin:end][::-1]

    # ── changes ─────────────────────────────────────────────────────────────────────────────

    async def get_or_create(
        self,
        environment: Environment,
        name: str,
        creation: Creation,
        *,
        object_id: str = "",
        created_by: str = "",
        details: bytes = b"",
        record: Recording | None = None,
    ) -> StoredObject:
        """The object called ``name``, created if ``creation`` says so.

        ``object_id`` is the caller's when the same call may come twice: the second one finds the
        first's work. ``details`` and what ``record`` writes count for a new object only.
        Raises ``NotFoundError``, ``AlreadyExistsError`` or ``InvalidError``.
        """
        if creation is Creation.LOOK_UP:
            return self.named(environment, name)
        if creation is Creation.EPHEMERAL:
            name = ""
        else:
            check_name(self.kind, name)
        object_id = object_id or ids.new(self.kind.prefix)
        async with self._changing:
            existing = self._by_id.get(object_id)
            if existing is None and name:
                existing = self._by_name.get((environment.environment_id, name))
            if existing is not None:
                if creation is Creation.FAIL_IF_EXISTS and existing.id != object_id:
                    raise AlreadyExistsError(self._taken(name, environment.name))
                return existing
            item = StoredObject(
                object_id,
                self.kind.key,
                environment.environment_id,
                name,
                self._creation_time(environment.environment_id),
                created_by,
                details,
            )
            await self._store.insert(item, record)
            self._add(item)
            return item

    async def rename(self, object_id: str, name: str) -> StoredObject:
        """Give it a new name in its environment; the id stays.

        Raises ``NotFoundError``, ``AlreadyExistsError``, ``InvalidError``.
        """
        check_name(self.kind, name)
        async with self._changing:
            old = self.get(object_id)
            if old.name == name:
                return old
            if (old.environment_id, name) in self._by_name:
                raise AlreadyExistsError(self._taken(name))
            if old.is_ephemeral:
                raise NotFoundError(f"an ephemeral {self.kind.noun} has no name to change")
            return await self._replace(old, msgspec.structs.replace(old, name=name))

    async def set_details(self, object_id: str, details: bytes) -> StoredObject:
        """Record other details. Raises ``NotFoundError``."""
        async with self._changing:
            old = self.get(object_id)
            return await self._replace(old, msgspec.structs.replace(old, details=details))

    async def delete(self, object_id: str, operation: str = "") -> None:
        """Delete it with what it holds. Raises ``NotFoundError``.

        ``operation`` names the call for its repeats (``Context.operation``).
        """
        if not await self._operations.was_done(operation):
            await self._delete([self.get(object_id)], operation)

    async def delete_of_environment(self, environment: Environment) -> None:
        """Delete all objects of an environment that is being deleted."""
        found = [
            item
            for item in self._by_id.values()
            if item.environment_id == environment.environment_id
        ]
        if found:
            await self._delete(found)

    def heartbeat(self, object_id: str) -> None:
        """The client of an ephemeral object is there. Raises ``NotFoundError``."""
        self.get(object_id)
        self._beats[object_id] = self._clock.monotonic()

    # ── in memory ───────────────────────────────────────────────────────────────────────────

    def _taken(self, name: str, environment: str = "") -> str:
        where = f" in environment {environment!r}" if environment else ""
        return f"{self.kind.noun} {name!r} already exists{where}"

    def _creation_time(self, environment_id: str) -> float:
        return max(self._clock.now(), self._newest.get(environment_id, 0.0) + TICK_S)

    def _add(self, item: StoredObject) -> None:
        self._by_id[item.id] = item
        newest = self._newest.get(item.environment_id, 0.0)
        self._newest[item.environment_id] = max(newest, item.created_at)
        if item.is_ephemeral:
            self._beats[item.id] = self._clock.monotonic()
            self._watch(item.id, self._ephemeral_timeout_s)
            return
        self._by_name[item.environment_id, item.name] = item
        items = self._named.setdefault(item.environment_id, [])
        items.insert(bisect_left(items, item.created_at, key=_created_at), item)

    def _remove(self, item: StoredObject) -> None:
        del self._by_id[item.id]
        if item.is_ephemeral:
            self._beats.pop(item.id, None)
            if timer := self._timers.pop(item.id, None):
                timer.cancel()
            return
        del self._by_name[item.environment_id, item.name]
        items = self._named[item.environment_id]
        del items[bisect_left(items, item.created_at, key=_created_at)]

    async def _replace(self, old: StoredObject, new: StoredObject) -> StoredObject:
        await self._store.update(new)
        if old.id not in self._by_id:
            raise NotFoundError(f"{self.kind.noun} {old.id!r} was deleted meanwhile")
        self._remove(old)
        self._add(new)
        return new

    async def _delete(self, items: Sequence[StoredObject], operation: str = "") -> None:
        # Out of sight first: what is asked for from here on comes after the deletion.
        for item in items:
            self._remove(item)
        try:
            recorded = self._operations.record(operation)
            await self._store.delete([item.id for item in items], self._erase, recorded)
        except Exception:
            for item in items:
                self._add(item)
            raise
        for callback in self._gone:
            await callback(items)

    # ── expiry of ephemeral objects ─────────────────────────────────────────────────────────

    def _watch(self, object_id: str, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._timers[object_id] = loop.call_later(delay_s, self._due, object_id)

    def _due(self, object_id: str) -> None:
        self._timers.pop(object_id, None)
        silent_s = self._clock.monotonic() - self._beats[object_id]
        if silent_s < self._ephemeral_timeout_s:
            self._watch(object_id, self._ephemeral_timeout_s - silent_s)
            return
        task = asyncio.create_task(self._expire(object_id))
        self._expiring.add(task)
        task.add_done_callback(self._expiring.discard)

    async def _expire(self, object_id: str) -> None:
        log.info("an ephemeral object is deleted: its client is silent", object_id=object_id)
        try:
            await self.delete(object_id)
        except HomeportError:
            return  # it was deleted by its owner meanwhile
        except Exception:
            log.exception("an expired object could not be deleted", object_id=object_id)
            if timer := self._timers.pop(object_id, None):
                timer.cancel()
            self._watch(object_id, _RETRY_S)


def _created_at(item: StoredObject) -> float:
    return item.created_at
