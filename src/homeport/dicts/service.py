"""Use cases of Dicts.

Decisions (is there such a key, which value does a pop take) are made in memory, one after the
other; the change is appended to the database's next transaction, and whoever learns of it waits
for that commit. So operations on one key are in one order for everybody, and many callers share a
commit.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from homeport.dicts import store as dict_store
from homeport.dicts.cache import EntryCache, Slot
from homeport.dicts.model import (
    DICT_BYTES_MAX,
    INLINE_BYTES_MAX,
    LIFETIME_S,
    TOUCH_S,
    Entry,
    check_key,
    check_updates,
    is_expired,
)
from homeport.dicts.store import DictStore
from homeport.environments.model import Environment
from homeport.kernel.clock import Clock
from homeport.kernel.errors import ExhaustedError
from homeport.objects.model import Creation, StoredObject
from homeport.objects.service import Objects
from homeport.storage.contents import ContentStore
from homeport.storage.operations import OperationLog

log = structlog.get_logger(__name__)

_TOKENS: Final = itertools.count(1)


class _Popped(msgspec.Struct, array_like=True):
    """The recorded answer of a pop."""

    file: str
    value: bytes


_popped_encoder: Final = msgspec.msgpack.Encoder()
_popped_decoder: Final = msgspec.msgpack.Decoder(_Popped)


@dataclass(slots=True, eq=False)
class _Live:
    """A Dict that was used since the server started."""

    dict_id: str
    token: int = field(default_factory=lambda: next(_TOKENS))
    """Part of its keys in the cache: a new one makes the cache forget them all."""
    size: int | None = None
    """Bytes of keys and values, at least: overwritten entries may be counted twice."""
    barrier: asyncio.Future[None] | None = None
    """The commit of a clear; what is read from the disk before that is gone."""
    loading: dict[bytes, asyncio.Task[None]] = field(
        default_factory=dict[bytes, "asyncio.Task[None]"]
    )


class DictService:
    """All Dicts of the installation; their names and lives are in ``objects``."""

    def __init__(
        self,
        store: DictStore,
        objects: Objects,
        files: ContentStore,
        operations: OperationLog,
        clock: Clock,
        *,
        cache: EntryCache | None = None,
        dict_bytes_max: int = DICT_BYTES_MAX,
    ) -> None:
        self.objects = objects
        self._store = store
        self._files = files
        self._operations = operations
        self._clock = clock
        self._cache = cache or EntryCache()
        self._dict_bytes_max = dict_bytes_max
        self._live: dict[str, _Live] = {}
        objects.on_gone(self._forget)

    async def _forget(self, items: Sequence[StoredObject]) -> None:
        for item in items:
            self._live.pop(item.id, None)

    async def create(
        self,
        environment: Environment,
        name: str,
        creation: Creation,
        *,
        data: Sequence[tuple[bytes, bytes]] = (),
        object_id: str = "",
        created_by: str = "",
    ) -> StoredObject:
        """The Dict called ``name``; a new one begins with ``data`` (clients before 1.4).

        Raises what ``Objects.get_or_create`` does, ``InvalidError`` for data beyond the limits.
        """
        check_updates(data, if_not_exists=False)
        items = await self._prepare(data)
        return await self.objects.get_or_create(
            environment,
            name,
            creation,
            object_id=object_id,
            created_by=created_by,
            record=lambda connection, item: dict_store.insert_all(connection, item.id, items),
        )

    # ── one key ─────────────────────────────────────────────────────────────────────────────

    async def get(self, dict_id: str, key: bytes) -> bytes | None:
        """The value of ``key``; ``None`` if there is none. Raises ``NotFoundError``."""
        live = self._of(dict_id)
        slot = await self._slot(live, key)
        if slot.pending is not None:
            await asyncio.shield(slot.pending)
        entry = self._present(slot)
        if entry is None:
            return None
        self._used(live, slot, entry)
        return await self._value(live, entry)

    async def contains(self, dict_id: str, key: bytes) -> bool:
        """Raises ``NotFoundError`` for the Dict."""
        slot = await self._slot(self._of(dict_id), key)
        if slot.pending is not None:
            await asyncio.shield(slot.pending)
        return self._present(slot) is not None

    async def pop(self, dict_id: str, key: bytes, operation: str = "") -> bytes | None:
        """Remove ``key``; its value, or ``None`` if there was none.

        ``operation`` names the call for its repeats (``Context.operation``), which get the same
        value. Raises ``NotFoundError`` for the Dict.
        """
        if (earlier := await self._operations.recall(operation)) is not None:
            popped = _popped_decoder.decode(earlier)
            return await self._files.read(popped.file) if popped.file else popped.value
        live = self._of(dict_id)
        while True:
            slot = await self._slot(live, key)
            entry = self._present(slot)
            if entry is None:
                if slot.pending is not None:
                    await asyncio.shield(slot.pending)
                return None
            value = entry.value
            if value is None:
                if slot.pending is not None:
                    await asyncio.shield(slot.pending)
                value = await self._value(live, entry)
            # Others may have changed it while its value was read.
            if value is not None and self._cache.get((live.token, key)) is slot:
                break
        self.objects.get(dict_id)
        answer = _Popped(entry.file, b"" if entry.file else value)
        record = self._operations.record(operation, _popped_encoder.encode(answer))
        live.size = None if live.size is None else live.size - entry.size
        await self._change(live, {key: None}, self._store.delete(dict_id, key, record))
        return value

    async def update(
        self,
        dict_id: str,
        updates: Sequence[tuple[bytes, bytes]],
        *,
        if_not_exists: bool = False,
        operation: str = "",
    ) -> bool:
        """Write entries, all or none; whether they were written, which is ``False`` only when
        ``if_not_exists`` found the key.

        Raises ``NotFoundError``, ``InvalidError`` and ``ExhaustedError`` (the Dict is full).
        """
        live = self._of(dict_id)
        check_updates(updates, if_not_exists=if_not_exists)
        if await self._operations.recall(operation) is not None:
            return True
        items = await self._prepare(updates)
        size = sum(item.size for item in items)
        await self._check_room(live, size)
        if if_not_exists:
            slot = await self._slot(live, items[0].key)
            if self._present(slot) is not None:
                if slot.pending is not None:
                    await asyncio.shield(slot.pending)
                return False
        self.objects.get(dict_id)
        if items:
            live.size = None if live.size is None else live.size + size
            for item in items:
                old = self._cache.get((live.token, item.key))
                if old is not None and old.entry is not None and live.size is not None:
                    live.size -= old.entry.size
            record = self._operations.record(operation)
            entries = {item.key: item for item in items}
            await self._change(live, entries, self._store.put(dict_id, items, record))
        return True

    # ── the whole ───────────────────────────────────────────────────────────────────────────

    async def clear(self, dict_id: str) -> None:
        """Remove all entries. Raises ``NotFoundError``."""
        live = self._of(dict_id)
        self._invalidate(live)
        live.size = 0
        live.barrier = self._store.clear(dict_id)
        live.barrier.add_done_callback(lambda done: self._committed(live, done))
        await asyncio.shield(live.barrier)

    async def len(self, dict_id: str) -> int:
        """How many entries there are. Raises ``NotFoundError``."""
        self.objects.get(dict_id)
        return await self._store.count(dict_id, self._clock.now() - LIFETIME_S - TOUCH_S)

    async def contents(
        self, dict_id: str, *, with_values: bool
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """Keys and (if asked for) values, in no order that means anything.

        What is there from beginning to end is given exactly once; what others write or remove
        meanwhile may or may not be. Raises ``NotFoundError``.
        """
        now = self._clock.now()
        before = now - LIFETIME_S - TOUCH_S
        after: bytes | None = None
        while True:
            self.objects.get(dict_id)
            page = await self._store.page(dict_id, after, before)
            if not page:
                break
            for entry in page:
                if not with_values:
                    yield entry.key, b""
                elif entry.file:
                    yield entry.key, await self._files.read(entry.file)
                else:
                    yield entry.key, entry.value or b""
            after = page[-1].key
        if with_values:
            self._store.touch_all(dict_id, now=now, older=now - TOUCH_S, before=before)

    # ── housekeeping ────────────────────────────────────────────────────────────────────────

    async def prune(self) -> int:
        """Delete entries that were not used for too long."""
        ids = [item.id for item in self.objects.all()]
        return await self._store.expire(ids, self._clock.now() - LIFETIME_S - TOUCH_S)

    async def file_contents(self) -> set[str]:
        """Hashes of the values that are kept in the file store."""
        return await self._store.files()

    # ── in memory ───────────────────────────────────────────────────────────────────────────

    def _of(self, dict_id: str) -> _Live:
        live = self._live.get(dict_id)
        if live is None:
            self.objects.get(dict_id)
            live = self._live[dict_id] = _Live(dict_id)
        return live

    def _present(self, slot: Slot) -> Entry | None:
        entry = slot.entry
        if entry is None or is_expired(entry.used_at, self._clock.now()):
            return None
        return entry

    def _used(self, live: _Live, slot: Slot, entry: Entry) -> None:
        now = self._clock.now()
        if now - entry.used_at > TOUCH_S:
            slot.entry = entry._replace(used_at=now)
            self._store.touch(live.dict_id, entry.key, now)

    async def _slot(self, live: _Live, key: bytes) -> Slot:
        """What is known about ``key``, read from the disk if nothing is.

        Returns without giving way to others once it is known.
        """
        check_key(key)
        while True:
            slot = self._cache.get((live.token, key))
            if slot is not None:
                return slot
            loading = live.loading.get(key)
            if loading is None:
                loading = asyncio.create_task(self._load(live, key))
                live.loading[key] = loading
            await asyncio.shield(loading)
            self.objects.get(live.dict_id)

    async def _load(self, live: _Live, key: bytes) -> None:
        me = asyncio.current_task()
        try:
            if live.barrier is not None:
                await asyncio.shield(live.barrier)
            entry = await self._store.get(live.dict_id, key)
            # A write that came meanwhile has put in what is newer than what was read.
            if live.loading.get(key) is me:
                self._cache.put((live.token, key), Slot(entry))
        finally:
            if live.loading.get(key) is me:
                del live.loading[key]

    async def _value(self, live: _Live, entry: Entry) -> bytes | None:
        """The value of a committed entry; ``None`` if it was removed meanwhile."""
        if entry.value is not None:
            return entry.value
        if not entry.file:
            stored = await self._store.get(live.dict_id, entry.key)
            if stored is None:
                return None
            entry = stored
        return await self._files.read(entry.file) if entry.file else entry.value

    async def _change(
        self,
        live: _Live,
        entries: dict[bytes, Entry] | dict[bytes, None],
        commit: asyncio.Future[None],
    ) -> None:
        for key, entry in entries.items():
            live.loading.pop(key, None)
            self._cache.put((live.token, key), Slot(entry, commit))
        commit.add_done_callback(lambda done: self._committed(live, done))
        await asyncio.shield(commit)

    def _committed(self, live: _Live, commit: asyncio.Future[None]) -> None:
        if live.barrier is commit:
            live.barrier = None
        if not commit.cancelled() and commit.exception() is not None:
            # What was decided in memory did not come to be: forget it, read the disk again.
            self._invalidate(live)
            live.size = None

    def _invalidate(self, live: _Live) -> None:
        live.token = next(_TOKENS)
        live.loading = {}

    async def _prepare(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[Entry]:
        """Entries for pairs; the long values are stored as files."""
        now = self._clock.now()
        items: list[Entry] = []
        for key, value in pairs:
            size = len(key) + len(value)
            if len(value) > INLINE_BYTES_MAX:
                items.append(Entry(key, size, now, await self._files.put_bytes(value), None))
            else:
                items.append(Entry(key, size, now, "", value))
        return items

    async def _check_room(self, live: _Live, size: int) -> None:
        if live.size is None or live.size + size > self._dict_bytes_max:
            live.size = await self._store.measure(live.dict_id)
            if live.size + size > self._dict_bytes_max:
                raise ExhaustedError(
                    f"the Dict is full: it holds {live.size} of {self._dict_bytes_max} bytes; "
                    "remove entries, or clear it"
                )
