"""Memory snapshots: sandboxes that stand still, with their files, to be gone on with later."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
import sqlalchemy as sa

from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import HomeportError, InvalidError, NotFoundError
from homeport.link.messages import Answer, Message, SandboxSnapshot, TakeMemory
from homeport.sandboxes.model import SandboxRecord, SandboxSpec
from homeport.sandboxes.ports import Creation, Snapshots
from homeport.storage.database import Database, metadata
from homeport.storage.dialects import insert

_TAKE_S: Final = 600.0
"""How long a node may take for one."""
_FAILURES_MAX: Final = 1_000
"""Reasons of failed ones that are kept for those who ask."""

memory_snapshots = sa.Table(
    "sandbox_memory_snapshots",
    metadata,
    sa.Column("snapshot_id", sa.String(40), primary_key=True),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
)
_ADD: Final = insert(memory_snapshots).on_conflict_do_nothing()


class MemorySnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The sandbox as it was, and the images of its files and its memory. Times: Unix seconds."""

    snapshot_id: str
    sandbox: SandboxRecord
    files_image_id: str
    memory_image_id: str
    expires_at: float


class MemorySnapshotStore:
    """The table of memory snapshots."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: MemorySnapshot) -> asyncio.Future[None]:
        """Write it with the next commit; the future is done when that is durable."""
        row = {
            "snapshot_id": record.snapshot_id,
            "expires_at": record.expires_at,
            "record": msgspec.msgpack.encode(record),
        }
        return self._database.append(_ADD, [row])

    async def find(self, snapshot_id: str) -> MemorySnapshot | None:
        """One of them; ``None`` if there is none of that id."""
        query = sa.select(memory_snapshots.c.record).where(
            memory_snapshots.c.snapshot_id == snapshot_id
        )
        row = await self._database.read(
            lambda connection: connection.execute(query).scalar_one_or_none()
        )
        return None if row is None else msgspec.msgpack.decode(row, type=MemorySnapshot)

    async def prune(self, now: float) -> int:
        """Forget those whose time is over; how many."""
        query = sa.delete(memory_snapshots).where(memory_snapshots.c.expires_at < now)
        return await self._database.write(lambda connection: connection.execute(query).rowcount)


class Sandboxes(Creation, Protocol):
    """The sandboxes that snapshots are taken of and become."""

    async def on_its_node(self, sandbox_id: str, when_over: str) -> SandboxRecord: ...


class Nodes(Protocol):
    """The links to nodes."""

    async def ask(
        self, node_id: str, make: Callable[[int], Message], timeout_s: float
    ) -> Answer: ...


class Secrets(Protocol):
    def open(self, owner_id: str, sealed: bytes) -> dict[str, str]: ...


class MemorySnapshots:
    """Takes memory snapshots, and makes sandboxes of them."""

    def __init__(
        self,
        store: MemorySnapshotStore,
        sandboxes: Sandboxes,
        nodes: Nodes,
        images: Snapshots,
        secrets: Secrets,
        clock: Clock,
    ) -> None:
        self._store = store
        self._sandboxes = sandboxes
        self._nodes = nodes
        self._images = images
        self._secrets = secrets
        self._clock = clock
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._failures: OrderedDict[str, str] = OrderedDict()

    async def begin(self, sandbox_id: str, snapshot_id: str) -> None:
        """Have a sandbox's node take the snapshot ``snapshot_id``; the same once.

        Returns at once, see ``outcome``. Raises ``NotFoundError``, ``ConflictError`` when it has
        ended, ``InvalidError`` if it was created without snapshots.
        """
        if snapshot_id in self._taking or await self._store.find(snapshot_id) is not None:
            return
        record = await self._sandboxes.on_its_node(
            sandbox_id, "a memory snapshot is taken of a running one"
        )
        check_enabled(record.spec)
        if snapshot_id in self._taking:
            return
        taking = asyncio.create_task(self._take(record, snapshot_id))
        self._taking[snapshot_id] = taking
        taking.add_done_callback(lambda _: self._taking.pop(snapshot_id, None))

    async def outcome(self, snapshot_id: str, timeout_s: float) -> str | None:
        """Why it could not be taken, empty if it is there, ``None`` after ``timeout_s``.

        Raises ``NotFoundError``.
        """
        taking = self._taking.get(snapshot_id)
        if taking is not None:
            await asyncio.wait([taking], timeout=timeout_s)
            if not taking.done():
                return None
        if snapshot_id in self._failures:
            return self._failures[snapshot_id]
        await self.get(snapshot_id)
        return ""

    async def get(self, snapshot_id: str) -> MemorySnapshot:
        """Raises ``NotFoundError``."""
        found = await self._store.find(snapshot_id)
        if found is None:
            raise NotFoundError(f"Memory snapshot {snapshot_id!r} not found")
        return found

    async def restore(
        self, snapshot_id: str, *, name: str | None, is_v2: bool, seed: str, is_repeat: bool
    ) -> SandboxRecord:
        """A new sandbox that goes on where the snapshot was taken; the same ``seed`` once.

        ``None`` as the name is that of the sandbox it was taken of. Raises as
        ``SandboxService.create``.
        """
        snapshot = await self.get(snapshot_id)
        was = snapshot.sandbox
        spec = msgspec.structs.replace(
            was.spec,
            image_id=snapshot.files_image_id,
            memory_image_id=snapshot.memory_image_id,
            mount_ids=[],  # what was mounted over the image is part of the files by now
            secrets=[],
        )
        sources = [
            ref.secret_id or self._secrets.open(was.sandbox_id, ref.sealed)
            for ref in was.spec.secrets
        ]
        return await self._sandboxes.create(
            was.app_id,
            spec,
            name=was.name if name is None else name,
            tags=was.tags,
            sources=sources,
            bucket_credentials={},
            is_v2=is_v2,
            seed=seed,
            is_repeat=is_repeat,
        )

    async def record(self, said: SandboxSnapshot, sandbox: SandboxRecord) -> None:
        """A node has taken it: its last layer is the memory. Durable when this returns."""
        snapshot_id = said.image_id
        snapshot = MemorySnapshot(
            snapshot_id=snapshot_id,
            sandbox=sandbox,
            files_image_id=ids.derive(ids.IMAGE, "files", snapshot_id),
            memory_image_id=ids.derive(ids.IMAGE, "memory", snapshot_id),
            expires_at=self._clock.now() + said.ttl_s,
        )
        *files, memory = said.layers
        parts = (
            ("files", snapshot.files_image_id, sandbox.spec.image_id, files),
            ("memory", snapshot.memory_image_id, "", [memory]),
        )
        for what, image_id, base_id, layers in parts:
            await self._images.add(
                image_id,
                made_on=sandbox.spec.image_id,
                base_id=base_id,
                layers=layers,
                node_id=sandbox.node_id,
                sandbox_id=sandbox.sandbox_id,
                app_id=sandbox.app_id,
                ttl_s=said.ttl_s,
                what=what,
            )
        await self._store.add(snapshot)

    async def stop(self) -> None:
        """Wait for no node any more."""
        for taking in list(self._taking.values()):
            taking.cancel()

    async def prune(self) -> int:
        """Forget those whose time is over; their images go by themselves. How many."""
        return await self._store.prune(self._clock.now())

    async def _take(self, record: SandboxRecord, snapshot_id: str) -> None:
        try:
            await self._nodes.ask(
                record.node_id,
                lambda ask_id: TakeMemory(ask_id, record.task_id, snapshot_id),
                _TAKE_S,
            )
        except HomeportError as error:
            self._failures[snapshot_id] = error.message
            if len(self._failures) > _FAILURES_MAX:
                self._failures.popitem(last=False)


def check_enabled(spec: SandboxSpec) -> None:
    """Raise ``InvalidError`` for a sandbox that was not created to have memory snapshots."""
    if not spec.memory_snapshots:
        raise InvalidError(
            "The sandbox was created without memory snapshots: ask for them with "
            "_experimental_enable_snapshot=True"
        )
