"""Tokens: who may speak to the server. The database keeps hashes, memory keeps them all.

A secret is 256 random bits, so one SHA-256 is enough to store it. Verification never touches the
database: every token is in memory from ``start`` on.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog
from sqlalchemy.engine import Connection

from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import ConflictError, NotFoundError
from homeport.storage.database import Database
from homeport.storage.operations import OperationLog
from homeport.workspace import credentials as credentials_file
from homeport.workspace import store
from homeport.workspace.credentials import Credentials
from homeport.workspace.model import Kind, Token

log = structlog.get_logger(__name__)

_ID_PREFIX: Final[dict[Kind, str]] = {"client": "ak", "node": "nk"}
_SECRET_PREFIX: Final = "as"
_USE_NOTED_S: Final = 300.0
"""How old ``last_used_at`` may be: keeps it off the hot path."""


class Tokens:
    """The installation's tokens. ``start`` before use."""

    def __init__(self, database: Database, clock: Clock, operations: OperationLog) -> None:
        self._database = database
        self._clock = clock
        self._operations = operations
        self._tokens: dict[str, Token] = {}

    async def start(self) -> None:
        """Load all tokens."""
        found = await self._database.read(store.load_tokens)
        self._tokens = {token.token_id: token for token in found}

    # ── verification (hot) ──────────────────────────────────────────────────────────────────

    def verify(self, token_id: str, secret: str) -> bool:
        """Whether that pair is a client's and may be used now."""
        token = self._tokens.get(token_id)
        return (
            token is not None
            and token.kind == "client"
            and hmac.compare_digest(token.secret_hash, _hash(secret))
            and token.disabled_at is None
            and self._note_use(token)
        )

    def verify_node(self, node_token: str) -> bool:
        """Whether ``node_token`` (``<id>.<secret>``) opens the node link."""
        token_id, _, secret = node_token.partition(".")
        token = self._tokens.get(token_id)
        return (
            token is not None
            and token.kind == "node"
            and hmac.compare_digest(token.secret_hash, _hash(secret))
            and token.disabled_at is None
            and self._note_use(token)
        )

    def _note_use(self, token: Token) -> Literal[True]:
        now = self._clock.now()
        if token.last_used_at is None or now - token.last_used_at > _USE_NOTED_S:
            token.last_used_at = now
            row = {"id": token.token_id, "used_at": now}
            self._database.append(store.NOTE_TOKEN_USE, [row]).add_done_callback(_log_failure)
        return True

    # ── management ──────────────────────────────────────────────────────────────────────────

    def list(self) -> list[Token]:
        """Clients' tokens, oldest first."""
        found = [token for token in self._tokens.values() if token.kind == "client"]
        return sorted(found, key=lambda token: token.created_at)

    def get(self, token_id: str) -> Token:
        """A client's token. Raises ``NotFoundError``."""
        token = self._tokens.get(token_id)
        if token is None or token.kind != "client":
            raise NotFoundError(f"there is no token {token_id!r}")
        return token

    async def create(self, name: str) -> tuple[Token, str]:
        """A new token for a client and its secret, which is nowhere kept."""
        secret = _new_secret()
        return await self._insert("client", name, _new_id("client"), secret), secret

    async def delete(self, token_id: str, operation: str = "") -> None:
        """Forget a token. Raises ``NotFoundError``; ``ConflictError`` for the last usable one.

        ``operation`` names the call for its repeats.
        """
        if await self._operations.was_done(operation):
            return
        self._keep_one(self.get(token_id))
        recorded = self._operations.record(operation)

        def write(connection: Connection) -> None:
            store.delete_token(connection, token_id)
            OperationLog.write(connection, recorded)

        await self._database.write(write)
        self._tokens.pop(token_id, None)

    async def disable(self, token_ids: Iterable[str]) -> None:
        """Refuse these tokens from now on. Raises as ``delete``."""
        await self._set_disabled(list(token_ids), self._clock.now())

    async def enable(self, token_ids: Iterable[str]) -> None:
        """Take these tokens again. Raises ``NotFoundError``."""
        await self._set_disabled(list(token_ids), None)

    async def _set_disabled(self, token_ids: list[str], disabled_at: float | None) -> None:
        found = [self.get(token_id) for token_id in token_ids]
        if disabled_at is not None:
            self._keep_one(*found)
        await self._database.write(
            lambda connection: store.set_tokens_disabled(connection, token_ids, disabled_at)
        )
        for token in found:
            token.disabled_at = disabled_at

    def _keep_one(self, *going: Token) -> None:
        going_ids = {token.token_id for token in going}
        if all(t.token_id in going_ids or t.disabled_at is not None for t in self.list()):
            raise ConflictError("the last usable token cannot go: nobody could speak to the server")

    # ── the installation's own ──────────────────────────────────────────────────────────────

    async def ensure_first_token(self, home: Path) -> Credentials:
        """The installation's own client token and node token, in ``<home>/credentials.toml``.

        What the file has is kept (and made known to a database that lost it); what it lacks is
        created. The database only ever has hashes.
        """
        have = await asyncio.to_thread(credentials_file.read, home) or Credentials()
        token_id, token_secret, node_token = have.token_id, have.token_secret, have.node_token
        if not (token_id and token_secret):
            token_id, token_secret = _new_id("client"), _new_secret()
        if "." not in node_token:
            node_token = f"{_new_id('node')}.{_new_secret()}"
        full = msgspec.structs.replace(
            have, token_id=token_id, token_secret=token_secret, node_token=node_token
        )
        if full != have:
            await asyncio.to_thread(credentials_file.write, home, full)
        node_id, _, node_secret = node_token.partition(".")
        if token_id not in self._tokens:
            await self._insert("client", "first", token_id, token_secret)
        if node_id not in self._tokens:
            await self._insert("node", "nodes", node_id, node_secret)
        return full

    async def _insert(self, kind: Kind, name: str, token_id: str, secret: str) -> Token:
        token = Token(token_id, kind, name, _hash(secret), self._clock.now())
        await self._database.write(lambda connection: store.insert_token(connection, token))
        self._tokens[token_id] = token
        return token


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _new_id(kind: Kind) -> str:
    return ids.new(_ID_PREFIX[kind])


def _new_secret() -> str:
    return f"{_SECRET_PREFIX}-{secrets.token_urlsafe(32)}"


def _log_failure(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and future.exception() is not None:
        log.warning("the last use of a token was not noted", error=str(future.exception()))
