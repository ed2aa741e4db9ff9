"""Persistent sandboxes: one after another, each with the files that the one before it left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
import sqlalchemy as sa

from homeport.kernel import ids
from homeport.kernel.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from homeport.sandboxes.model import (
    SandboxRecord,
    SandboxResult,
    SandboxSpec,
    exit_image_id,
)
from homeport.sandboxes.ports import Creation
from homeport.storage.database import Database, metadata
from homeport.storage.dialects import insert

PERSISTENT: Final = "ps"
"""Prefix of their ids."""
_KEPT_S: Final = 10.0
"""How long a resumption waits for the files of the last session to be an image."""

persistent_sandboxes = sa.Table(
    "persistent_sandboxes",
    metadata,
    sa.Column("persistent_id", sa.String(40), primary_key=True),
    sa.Column("record", sa.LargeBinary, nullable=False),
)
_insert = insert(persistent_sandboxes)
_UPSERT: Final = _insert.on_conflict_do_update(
    index_elements=["persistent_id"], set_={"record": _insert.excluded["record"]}
)


class PersistentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What it is made of, and its newest session (a sandbox's id)."""

    persistent_id: str
    app_id: str
    spec: SandboxSpec
    secret_ids: list[str]
    session_id: str
    session_task_id: str
    image_id: str
    """Where the newest session began; the next one if it leaves no files."""
    sessions: int = 1
    is_terminated: bool = False


class PersistentStore:
    """The table of persistent sandboxes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> list[PersistentRecord]:
        """All of them."""

        def read(connection: sa.Connection) -> list[PersistentRecord]:
            rows = connection.execute(sa.select(persistent_sandboxes.c.record)).scalars()
            return [msgspec.msgpack.decode(row, type=PersistentRecord) for row in rows]

        return await self._database.read(read)

    def save(self, record: PersistentRecord) -> asyncio.Future[None]:
        """Write it with the next commit."""
        row = {
            "persistent_id": record.persistent_id,
            "record": msgspec.msgpack.encode(record),
        }
        return self._database.append(_UPSERT, [row])

    def delete(self, persistent_id: str) -> asyncio.Future[None]:
        """Forget it with the next commit."""
        statement = sa.delete(persistent_sandboxes).where(
            persistent_sandboxes.c.persistent_id == sa.bindparam("gone")
        )
        return self._database.append(statement, [{"gone": persistent_id}])


class Sandboxes(Creation, Protocol):
    """The sandboxes that are their sessions."""

    async def exit_snapshot(self, sandbox_id: str, timeout_s: float) -> str | None: ...

    async def terminate(self, sandbox_id: str) -> SandboxResult | None: ...


class PersistentSandboxes:
    """All persistent sandboxes, in memory, written through."""

    def __init__(
        self, store: PersistentStore, sandboxes: Sandboxes, has_image: Callable[[str], bool]
    ) -> None:
        self._has_image = has_image
        self._store = store
        self._sandboxes = sandboxes
        self._all: dict[str, PersistentRecord] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def start(self) -> None:
        """Take up those of a former server process."""
        self._all = {record.persistent_id: record for record in await self._store.load()}

    async def create(
        self, app_id: str, spec: SandboxSpec, secret_ids: list[str], *, seed: str, is_repeat: bool
    ) -> PersistentRecord:
        """A new one, with its first session; the same ``seed`` once. Raises ``HomeportError``."""
        seed = seed or ids.new(PERSISTENT)
        persistent_id = ids.derive(PERSISTENT, seed)
        known = self._all.get(persistent_id)
        if known is not None:
            return known
        spec = msgspec.structs.replace(spec, exit_snapshot=True)
        session = await self._begin(app_id, spec, secret_ids, f"{persistent_id} 1", is_repeat)
        record = PersistentRecord(
            persistent_id=persistent_id,
            app_id=app_id,
            spec=spec,
            secret_ids=secret_ids,
            session_id=session.sandbox_id,
            session_task_id=session.task_id,
            image_id=spec.image_id,
        )
        await self._keep(record)
        return record

    def get(self, persistent_id: str) -> PersistentRecord:
        """Raises ``NotFoundError``."""
        record = self._all.get(persistent_id)
        if record is None:
            raise NotFoundError(f"Persistent sandbox {persistent_id!r} not found")
        return record

    async def running(self, persistent_id: str) -> str:
        """Its running session; empty without one. Raises ``NotFoundError``."""
        session = await self._session(self.get(persistent_id))
        is_running = session is not None and not session.is_over and not session.terminated_at
        return session.sandbox_id if session is not None and is_running else ""

    async def resume(self, persistent_id: str) -> str:
        """Its running session, begun if there is none, from what the last one left.

        Raises ``NotFoundError``, ``InvalidError`` after its end, ``UnavailableError`` while the
        last session is on its way out.
        """
        async with self._turns.setdefault(persistent_id, asyncio.Lock()):
            record = self.get(persistent_id)
            if record.is_terminated:
                raise InvalidError(f"Persistent sandbox {persistent_id!r} has been terminated")
            running = await self.running(persistent_id)
            if running:
                return running
            image_id = await self._left(record)
            spec = record.spec
            if image_id != spec.image_id:
                # what was mounted over the image is part of the files by now
                spec = msgspec.structs.replace(spec, image_id=image_id, mount_ids=[])
            number = record.sessions + 1
            session = await self._begin(
                record.app_id, spec, record.secret_ids, f"{persistent_id} {number}", True
            )
            await self._keep(
                msgspec.structs.replace(
                    record,
                    session_id=session.sandbox_id,
                    session_task_id=session.task_id,
                    image_id=image_id,
                    sessions=number,
                )
            )
            return session.sandbox_id

    async def terminate(self, persistent_id: str) -> None:
        """End it for good; durable when it returns. Raises ``NotFoundError``."""
        record = msgspec.structs.replace(self.get(persistent_id), is_terminated=True)
        await self._keep(record)
        if await self._session(record) is not None:
            await self._sandboxes.terminate(record.session_id)

    async def prune(self) -> int:
        """Forget those that ended and whose last session nobody can look up any more; how many."""
        gone = [
            record.persistent_id
            for record in list(self._all.values())
            if record.is_terminated and await self._session(record) is None
        ]
        for persistent_id in gone:
            del self._all[persistent_id]
            self._turns.pop(persistent_id, None)
            await self._store.delete(persistent_id)
        return len(gone)

    def images_in_use(self) -> set[str]:
        """The images that sessions to come may begin with."""
        return {
            image_id
            for record in self._all.values()
            if not record.is_terminated
            for image_id in (
                record.spec.image_id,
                record.image_id,
                exit_image_id(record.session_task_id),
            )
        }

    async def _left(self, record: PersistentRecord) -> str:
        """The image to go on from. Raises ``UnavailableError`` while it is not there yet."""
        session = await self._session(record)
        if session is None:
            last = exit_image_id(record.session_task_id)
            return last if self._has_image(last) else record.image_id
        try:
            image_id = await self._sandboxes.exit_snapshot(record.session_id, _KEPT_S)
        except NotFoundError:
            return record.image_id
        if image_id is None:
            raise UnavailableError("the last session is still ending; try again")
        return image_id

    async def _begin(
        self, app_id: str, spec: SandboxSpec, secret_ids: list[str], seed: str, is_repeat: bool
    ) -> SandboxRecord:
        try:
            return await self._sandboxes.create(
                app_id,
                spec,
                name="",
                tags={},
                sources=secret_ids,
                bucket_credentials={},
                is_v2=True,
                seed=seed,
                is_repeat=is_repeat,
            )
        except ConflictError as error:
            raise InvalidError(error.message) from None

    async def _session(self, record: PersistentRecord) -> SandboxRecord | None:
        return await self._sandboxes.find(record.session_id)

    async def _keep(self, record: PersistentRecord) -> None:
        self._all[record.persistent_id] = record
        await self._store.save(record)
