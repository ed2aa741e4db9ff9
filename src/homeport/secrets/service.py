"""Use cases of secrets."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

import msgspec

from homeport.environments.model import Environment
from homeport.kernel import ids
from homeport.kernel.clock import Clock, SystemClock
from homeport.kernel.errors import AlreadyExistsError, NotFoundError
from homeport.secrets.crypt import SecretBox
from homeport.secrets.model import (
    PAGE_MAX,
    Secret,
    check_name,
    check_required,
    check_values,
)
from homeport.secrets.store import SecretStore, SecretTable
from homeport.storage.operations import OperationLog

IfExists = Literal["keep", "fail", "overwrite"]
_CLOCK_SLACK_S: Final = 60.0
"""A client whose clock is behind the server's still sees the newest secrets."""
_TICK_S: Final = 1e-6
_QUERY_IDS_MAX: Final = 500


class SecretService:
    """Secrets of the installation; values leave it only through ``env``."""

    def __init__(
        self,
        store: SecretStore,
        box: SecretBox,
        operations: OperationLog,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._operations = operations
        self._box = box
        self._clock = clock or SystemClock()

    # ── look-ups ────────────────────────────────────────────────────────────────────────────

    async def get(self, secret_id: str) -> Secret:
        """Raises ``NotFoundError``."""
        secret = await self._store.get(secret_id)
        if secret is None:
            raise NotFoundError(f"Secret {secret_id!r} not found")
        return secret

    async def named(
        self, environment: Environment, name: str, required_keys: Sequence[str] = ()
    ) -> Secret:
        """Raises ``NotFoundError`` for the secret or for keys it lacks, naming them."""
        secret = await self._store.named(environment.environment_id, name)
        if secret is None:
            raise NotFoundError(f"Secret {name!r} not found in environment {environment.name!r}")
        check_required(secret, required_keys)
        return secret

    async def list(
        self, environment: Environment, *, created_before: float | None, count: int
    ) -> list[Secret]:
        """Named secrets, newest first: ``count`` of them created before that time; 0 = all.

        A time that is no secret's own is a client's clock: then a minute is added to it.
        """
        environment_id = environment.environment_id
        if created_before and not await self._store.has_created_at(environment_id, created_before):
            created_before += _CLOCK_SLACK_S
        limit = min(count, PAGE_MAX) if count > 0 else None
        return await self._store.list(environment_id, created_before or None, limit)

    async def env(self, secret_ids: Sequence[str]) -> dict[str, str]:
        """The variables of these secrets; later ones override. Raises ``NotFoundError``."""
        if not secret_ids:
            return {}
        sealed = await self._store.sealed(secret_ids)
        env: dict[str, str] = {}
        for secret_id in secret_ids:
            if secret_id not in sealed:
                raise NotFoundError(f"Secret {secret_id!r} not found; it may have been deleted")
            env.update(self._box.open(secret_id, sealed[secret_id]))
        self._store.used(secret_ids, self._clock.now())
        return env

    async def mark(self, secret_ids: Sequence[str]) -> bytes:
        """Another one when any of these secrets has been given new values."""
        sealed = await self._store.sealed(secret_ids) if secret_ids else {}
        digest = hashlib.sha256()
        for secret_id in secret_ids:
            digest.update(sealed.get(secret_id, b""))
        return digest.digest() if secret_ids else b""

    async def apps_of(self, secret_ids: Collection[str]) -> set[str]:
        """Ids of the apps that these secrets belong to; those with a name belong to none."""
        found: set[str] = set()
        ids_ = list(secret_ids)
        for start in range(0, len(ids_), _QUERY_IDS_MAX):
            found |= await self._store.app_ids(ids_[start : start + _QUERY_IDS_MAX])
        return found - {""}

    def seal(self, owner_id: str, values: Mapping[str, str]) -> bytes:
        """Values that an object keeps itself, unreadable without the installation's key."""
        return self._box.seal(owner_id, dict(values))

    def open(self, owner_id: str, sealed: bytes) -> dict[str, str]:
        """What ``seal`` was given."""
        return self._box.open(owner_id, sealed)

    # ── changes ─────────────────────────────────────────────────────────────────────────────

    async def create(
        self,
        environment: Environment,
        name: str,
        values: Mapping[str, str],
        *,
        if_exists: IfExists,
        created_by: str = "",
        secret_id: str = "",
    ) -> Secret:
        """Create a named secret, or do with the existing one what ``if_exists`` says.

        Overwriting keeps the id, so what refers to it sees the new values. ``secret_id`` is the
        caller's when the same call may come twice: the second one finds the first's work.
        Raises ``AlreadyExistsError`` or ``InvalidError``.
        """
        check_name(name)
        check_values(values)
        fresh = self._new(environment.environment_id, name, "", values, created_by, secret_id)

        def change(table: SecretTable) -> Secret:
            existing = table.named(environment.environment_id, name)
            if existing is None:
                return self._insert(table, fresh, values)
            if existing[0].id == secret_id:
                return existing[0]
            if if_exists == "fail":
                raise AlreadyExistsError(
                    f"Secret {name!r} already exists in environment {environment.name!r}"
                )
            if if_exists == "keep":
                return existing[0]
            return self._replace(table, existing[0], values)

        return await self._store.change(change)

    async def create_anonymous(
        self,
        environment: Environment,
        values: Mapping[str, str],
        *,
        app_id: str = "",
        created_by: str = "",
        secret_id: str = "",
    ) -> Secret:
        """A nameless secret; the same values in the same app are the same secret."""
        check_values(values)
        fresh = self._new(environment.environment_id, "", app_id, values, created_by, secret_id)
        if app_id:
            content = msgspec.msgpack.encode(sorted(values.items()))
            fresh = msgspec.structs.replace(fresh, id=self._box.derive_id(app_id, content))

        def change(table: SecretTable) -> Secret:
            existing = table.get(fresh.id)
            return existing[0] if existing else self._insert(table, fresh, values)

        return await self._store.change(change)

    async def update(self, secret_id: str, updates: Mapping[str, str | None]) -> None:
        """Set keys; ``None`` deletes one. Containers started later see it."""
        check_values({key: value for key, value in updates.items() if value is not None})

        def change(table: SecretTable) -> Secret:
            found = table.get(secret_id)
            if found is None:
                raise NotFoundError(f"Secret {secret_id!r} not found")
            values: dict[str, str | None] = {**self._box.open(secret_id, found[1]), **updates}
            kept = {key: value for key, value in values.items() if value is not None}
            check_values(kept)
            return self._replace(table, found[0], kept)

        await self._store.change(change)

    async def delete(self, secret_id: str, operation: str = "") -> None:
        """Raises ``NotFoundError``. ``operation`` names the call for its repeats."""
        if await self._operations.was_done(operation):
            return
        if not await self._store.delete("id", secret_id, self._operations.record(operation)):
            raise NotFoundError(f"Secret {secret_id!r} not found")

    async def delete_of_app(self, app_id: str) -> None:
        """Delete the anonymous secrets of an app that is gone."""
        await self._store.delete("app_id", app_id)

    async def delete_of_environment(self, environment: Environment) -> None:
        """Delete all secrets of an environment that is being deleted."""
        await self._store.delete("environment_id", environment.environment_id)

    def _new(
        self,
        environment_id: str,
        name: str,
        app_id: str,
        values: Mapping[str, str],
        created_by: str,
        secret_id: str,
    ) -> Secret:
        return Secret(
            id=secret_id or ids.new(ids.SECRET),
            name=name,
            environment_id=environment_id,
            app_id=app_id,
            keys=tuple(sorted(values)),
            created_at=self._clock.now(),
            created_by=created_by,
            last_used_at=0.0,
        )

    def _insert(self, table: SecretTable, secret: Secret, values: Mapping[str, str]) -> Secret:
        # Clients page by creation time, so no two secrets may share one.
        newest = table.newest_created_at(secret.environment_id)
        if secret.created_at <= newest:
            secret = msgspec.structs.replace(secret, created_at=newest + _TICK_S)
        table.insert(secret, self._box.seal(secret.id, dict(values)))
        return secret

    def _replace(self, table: SecretTable, secret: Secret, values: Mapping[str, str]) -> Secret:
        keys = tuple(sorted(values))
        table.replace_values(secret.id, keys, self._box.seal(secret.id, dict(values)))
        return msgspec.structs.replace(secret, keys=keys)
