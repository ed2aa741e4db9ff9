"""Use cases of functions and classes: announce, create, look up, bind variants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from homeport.functions.model import ClassRecord, FunctionRecord
from homeport.functions.store import FunctionStore
from homeport.kernel.errors import NotFoundError
from homeport.storage.database import Step


class Switch(NamedTuple):
    """From one set of definitions to another."""

    steps: list[Step]
    """To be committed with the app that is published."""
    make_live: Callable[[], None]
    """To be called when they are."""


NO_CHANGE = Switch([], lambda: None)


class FunctionService:
    """All functions of the installation, in memory, written through to the store."""

    def __init__(self, store: FunctionStore) -> None:
        self._store = store
        self._functions: dict[str, FunctionRecord] = {}
        self._variants: dict[str, dict[str, FunctionRecord]] = {}
        """By base function: its bound variants."""
        self._classes: dict[str, ClassRecord] = {}
        self._on_change: list[Callable[[FunctionRecord], None]] = []

    async def start(self) -> None:
        """Read what earlier runs of the server left."""
        functions, classes = await self._store.load()
        for record in functions:
            self._put(record)
        self._classes = {record.class_id: record for record in classes}

    def on_change(self, listener: Callable[[FunctionRecord], None]) -> None:
        """Have ``listener`` called with each record that is created or replaced."""
        self._on_change.append(listener)

    def _put(self, record: FunctionRecord) -> None:
        self._functions[record.function_id] = record
        if record.spec is not None and record.spec.base_function_id:
            variants = self._variants.setdefault(record.spec.base_function_id, {})
            variants[record.function_id] = record

    def find(self, function_id: str) -> FunctionRecord | None:
        return self._functions.get(function_id)

    def get(self, function_id: str) -> FunctionRecord:
        """The function; raises ``NotFoundError``."""
        record = self._functions.get(function_id)
        if record is None:
            raise NotFoundError(
                f"Function with id {function_id!r} not found. It may belong to an app that has "
                "ended: run or deploy the app again and use the new handle."
            )
        return record

    def all(self) -> Iterable[FunctionRecord]:
        """Every function, also of apps that have ended."""
        return self._functions.values()

    def of_app(self, app_id: str) -> list[FunctionRecord]:
        return [record for record in self._functions.values() if record.app_id == app_id]

    def variants_of(self, function_id: str) -> list[FunctionRecord]:
        """The bound variants of a function."""
        return list(self._variants.get(function_id, {}).values())

    async def save(self, record: FunctionRecord) -> FunctionRecord:
        """Create or replace; durable when it returns."""
        self._put(record)
        await self._store.save(record)
        for listener in self._on_change:
            listener(record)
        return record

    async def draft(self, record: FunctionRecord) -> FunctionRecord:
        """Keep a new definition of a published function until its app is published again."""
        await self._store.keep(record)
        return record

    async def version(self, function_id: str, definition_id: str) -> FunctionRecord:
        """The record of one version of a function; raises ``NotFoundError``."""
        live = self._functions.get(function_id)
        if live is not None and live.definition_id == definition_id:
            return live
        record = await self._store.version(function_id, definition_id)
        if record is None:
            raise NotFoundError(
                f"The definition of function {function_id} that this version needs is not kept "
                "any more: deploy the app again."
            )
        return record

    async def switch(
        self,
        definitions: Mapping[str, str],
        rebound: Callable[[FunctionRecord, FunctionRecord], FunctionRecord],
    ) -> Switch:
        """What has to change for these definitions (by function id) to be the live ones.

        Bound variants of a function follow it: ``rebound`` makes them anew. Raises
        ``NotFoundError``.
        """
        kept = [await self.version(*item) for item in definitions.items()]
        changed: list[FunctionRecord] = []
        for record in kept:
            if record is not self._functions.get(record.function_id):
                changed.append(record)
                changed += [
                    rebound(variant, record) for variant in self.variants_of(record.function_id)
                ]
        steps = [self._store.saved(changed), self._store.kept(kept)]
        return Switch(steps, lambda: self._make_live(changed))

    def _make_live(self, records: Sequence[FunctionRecord]) -> None:
        for record in records:
            self._put(record)
        for record in records:
            for listener in self._on_change:
                listener(record)

    async def forget_versions(self, app_id: str, needed: Set[tuple[str, str]]) -> None:
        """Keep of an app's versions only these pairs of function and definition."""
        await self._store.prune_versions(app_id, needed)

    async def announce(self, record: FunctionRecord) -> FunctionRecord:
        """Give a function its id before its definition exists (RPC ``FunctionPrecreate``).

        A function that already exists keeps its definition until it is created anew.
        """
        known = self._functions.get(record.function_id)
        if known is not None and known.spec is not None:
            return known
        self._put(record)
        await self._store.save(record)
        return record

    async def save_class(self, record: ClassRecord) -> ClassRecord:
        self._classes[record.class_id] = record
        await self._store.save_class(record)
        return record

    def get_class(self, class_id: str) -> ClassRecord:
        record = self._classes.get(class_id)
        if record is None:
            raise NotFoundError(f"Class with id {class_id!r} not found")
        return record

    async def delete_of_app(self, app_id: str) -> None:
        """Delete the functions and classes of an app that is gone."""
        await self._store.delete_of_app(app_id)
        for record in self.of_app(app_id):
            self._variants.pop(record.function_id, None)
        self._functions = {
            key: record for key, record in self._functions.items() if record.app_id != app_id
        }
        self._classes = {
            key: record for key, record in self._classes.items() if record.app_id != app_id
        }
