"""Use cases of environments. All of them are in memory; changes go to the database first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from sqlalchemy.engine import Connection

from homeport.environments import store
from homeport.environments.model import (
    COUNT_MAX,
    FIRST_NAME,
    Environment,
    check_name,
    check_web_suffix,
    web_suffix_for,
)
from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import (
    AlreadyExistsError,
    ConflictError,
    ExhaustedError,
    NotFoundError,
    UnimplementedError,
)
from homeport.storage.database import Database
from homeport.storage.operations import OperationLog

Deleting = Callable[[Environment], Awaitable[None]]
Renamed = Callable[[Environment, Environment], Awaitable[None]]


class EnvironmentService:
    """The installation's environments. ``start`` before use.

    Features that keep things in environments register with ``on_deleting`` (remove them; runs
    before the environment goes, and may raise to refuse) and ``on_renamed`` (old, new; runs once
    the new name is recorded). While nobody has, both changes are refused: they would leave
    things behind that no name leads to.
    """

    def __init__(self, database: Database, clock: Clock, operations: OperationLog) -> None:
        self._database = database
        self._clock = clock
        self._operations = operations
        self._by_name: dict[str, Environment] = {}
        self._default: Environment | None = None
        self._changing = asyncio.Lock()
        self._deleting: list[Deleting] = []
        self._renamed: list[Renamed] = []

    async def start(self) -> None:
        """Load all environments; at the first start create ``main``, the default."""
        found = await self._database.read(store.load)
        if not found:
            first = Environment(
                ids.new(ids.ENVIRONMENT), FIRST_NAME, "", self._clock.now(), is_default=True
            )
            await self._database.write(lambda connection: store.insert(connection, first))
            found = [first]
        self._by_name = {environment.name: environment for environment in found}
        self._default = next((e for e in found if e.is_default), found[0])

    def on_deleting(self, callback: Deleting) -> None:
        """Have ``callback`` remove what an environment holds before it is deleted."""
        self._deleting.append(callback)

    def on_renamed(self, callback: Renamed) -> None:
        """Have ``callback`` follow a change of name."""
        self._renamed.append(callback)

    # ── look-up (hot) ───────────────────────────────────────────────────────────────────────

    @property
    def default(self) -> Environment:
        """What an empty name means."""
        assert self._default is not None, "EnvironmentService.start was not awaited"
        return self._default

    def resolve(self, name: str, default: str = "") -> Environment:
        """The environment called ``name``; if empty, the one called ``default``; if that is
        empty too, the workspace's default. Raises ``NotFoundError``."""
        wanted = name or default
        if not wanted:
            return self.default
        environment = self._by_name.get(wanted)
        if environment is None:
            raise NotFoundError(
                f"Environment {wanted[:80]!r} not found; there are: {self._names()}. "
                f"`modal environment create {wanted[:80]}` makes it."
            )
        return environment

    def get(self, environment_id: str) -> Environment:
        """Raises ``NotFoundError``."""
        for environment in self._by_name.values():
            if environment.environment_id == environment_id:
                return environment
        raise NotFoundError(f"Environment {environment_id[:80]!r} not found")

    def list(self) -> list[Environment]:
        """All environments, the default first, then by name."""
        return sorted(self._by_name.values(), key=lambda e: (not e.is_default, e.name))

    def _names(self) -> str:
        names = [environment.name for environment in self.list()]
        return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")

    # ── changes ─────────────────────────────────────────────────────────────────────────────

    async def create(self, name: str, *, environment_id: str = "") -> Environment:
        """A new environment.

        ``environment_id`` is the caller's when the same call may come twice: the second one
        finds the first's work. Raises ``InvalidError``, ``AlreadyExistsError``,
        ``ExhaustedError``.
        """
        check_name(name)
        async with self._changing:
            existing = self._by_name.get(name)
            if existing is not None:
                if existing.environment_id == environment_id:
                    return existing
                raise AlreadyExistsError(f"Environment {name!r} already exists")
            if len(self._by_name) >= COUNT_MAX:
                raise ExhaustedError(
                    f"there are {COUNT_MAX} environments, the most possible; delete one first"
                )
            environment = Environment(
                environment_id or ids.new(ids.ENVIRONMENT),
                name,
                self._free_suffix(web_suffix_for(name)),
                self._clock.now(),
            )
            await self._database.write(lambda connection: store.insert(connection, environment))
            self._by_name[name] = environment
            return environment

    async def ensure(self, name: str, *, environment_id: str = "") -> Environment:
        """The environment called ``name`` (empty: the default), created if missing."""
        if not name or name in self._by_name:
            return self.resolve(name)
        try:
            return await self.create(name, environment_id=environment_id)
        except AlreadyExistsError:  # created by another while this one waited
            return self.resolve(name)

    async def update(
        self,
        name: str,
        *,
        new_name: str | None = None,
        web_suffix: str | None = None,
        image_builder_version: str | None = None,
        operation: str = "",
    ) -> Environment:
        """Change what is given. An empty ``image_builder_version`` means the workspace's.

        ``operation`` names the call for its repeats, which no longer find the old name. Raises ``NotFoundError``, ``InvalidError``, ``AlreadyExistsError``.
        """
        done = await self._operations.was_done(operation)
        async with self._changing:
            if done and new_name:
                return self.resolve(new_name)
            old = self.resolve(name)
            new = old
            if new_name is not None and new_name != old.name:
                _require(self._renamed, "rename")
                check_name(new_name)
                if new_name in self._by_name:
                    raise AlreadyExistsError(f"Environment {new_name!r} already exists")
                new = replace(new, name=new_name)
            if web_suffix is not None and web_suffix != old.web_suffix:
                self._check_suffix_free(web_suffix)
                new = replace(new, web_suffix=web_suffix)
            if image_builder_version is not None:
                new = replace(new, image_builder_version=image_builder_version)
            recorded = self._operations.record(operation)

            def write(connection: Connection) -> None:
                store.update(connection, new)
                OperationLog.write(connection, recorded)

            await self._database.write(write)
            del self._by_name[old.name]
            self._by_name[new.name] = new
            if old.is_default:
                self._default = new
            if new.name != old.name:
                for callback in self._renamed:
                    await callback(old, new)
            return new

    async def set_default(self, name: str) -> Environment:
        """Make ``name`` what an empty name means. Raises ``NotFoundError``."""
        async with self._changing:
            chosen = self.resolve(name)
            await self._database.write(
                lambda connection: store.set_default(connection, chosen.environment_id)
            )
            for environment in self.list():
                is_default = environment.name == chosen.name
                self._by_name[environment.name] = replace(environment, is_default=is_default)
            self._default = self._by_name[chosen.name]
            return self._default

    async def delete(self, name: str, operation: str = "") -> None:
        """Delete an environment with all it holds.

        ``operation`` names the call for its repeats. Raises ``NotFoundError``; ``ConflictError``
        for the default one.
        """
        if await self._operations.was_done(operation):
            return
        async with self._changing:
            _require(self._deleting, "delete")
            environment = self.resolve(name)
            if environment.is_default:
                raise ConflictError(
                    f"Environment {environment.name!r} is the default one and cannot be deleted; "
                    "choose another default first"
                )
            for callback in self._deleting:
                await callback(environment)
            recorded = self._operations.record(operation)

            def write(connection: Connection) -> None:
                store.delete(connection, environment.environment_id)
                OperationLog.write(connection, recorded)

            await self._database.write(write)
            del self._by_name[environment.name]

    def _check_suffix_free(self, suffix: str) -> None:
        check_web_suffix(suffix)
        for environment in self._by_name.values():
            if environment.web_suffix == suffix:
                raise AlreadyExistsError(
                    f"Environment {environment.name!r} has the web suffix {suffix!r} already"
                )

    def _free_suffix(self, wanted: str) -> str:
        taken = {environment.web_suffix for environment in self._by_name.values()}
        suffix, number = wanted, 2
        while suffix in taken:
            suffix, number = f"{wanted}-{number}", number + 1
        return suffix


def _require(followers: Sequence[object], change: str) -> None:
    if not followers:
        raise UnimplementedError(f"this server cannot {change} environments")
