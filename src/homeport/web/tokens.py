"""Proxy tokens: who may call web functions that are not for everybody.

All are in memory, so that no request waits for the database.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import replace
from typing import Final

from homeport.environments.model import Environment
from homeport.environments.service import EnvironmentService
from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import HomeportError, InvalidError, NotFoundError, UnauthenticatedError
from homeport.kernel.signing import Signer
from homeport.storage.database import Database
from homeport.web import store
from homeport.web.model import NAME_CHARS_MAX, ProxyToken

_ID: Final = "wk"
_AUDIENCE: Final = "web"
SHORT_S: Final = 3600.0
_SECRET: Final = "ws"


class ProxyTokens:
    """The installation's proxy tokens. ``start`` before use."""

    def __init__(
        self,
        database: Database,
        environments: EnvironmentService,
        signer: Signer,
        clock: Clock,
    ) -> None:
        self._database = database
        self._environments = environments
        self._signer = signer
        self._clock = clock
        self._tokens: dict[str, ProxyToken] = {}
        environments.on_deleting(self._environment_deleting)

    async def start(self) -> None:
        """Load all tokens."""
        found = await self._database.read(store.load)
        self._tokens = {token.token_id: token for token in found}

    def verify(self, token_id: str, secret: str, environment: str) -> bool:
        """Whether that pair opens the web functions of the environment of that name."""
        token = self._tokens.get(token_id)
        if token is None or not hmac.compare_digest(token.secret_hash, _hash(secret)):
            return False
        if not token.scoped:
            return True
        try:
            return self._environments.resolve(environment).environment_id in token.environments
        except HomeportError:
            return False

    def issue_short(self, caller: str, function_id: str) -> str:
        """A token for an hour, for ``caller`` (a token or a task) to call one web function."""
        return self._signer.issue(caller, _AUDIENCE, SHORT_S, scope=function_id)

    def verify_short(self, token: str, function_id: str) -> bool:
        """Whether ``issue_short`` made that token for that function."""
        try:
            return self._signer.verify(token, _AUDIENCE).scope == function_id
        except UnauthenticatedError:
            return False

    def list(self, environment_id: str = "") -> list[ProxyToken]:
        """All tokens, or those that are for that environment in particular; oldest first."""
        found = [
            token
            for token in self._tokens.values()
            if not environment_id or environment_id in token.environments
        ]
        return sorted(found, key=lambda token: token.created_at)

    def get(self, token_id: str) -> ProxyToken:
        """The token. Raises ``NotFoundError``."""
        token = self._tokens.get(token_id)
        if token is None:
            raise NotFoundError(f"there is no proxy token {token_id!r}")
        return token

    async def create(self, name: str, *, scoped: bool) -> tuple[ProxyToken, str]:
        """A new token and its secret, which is nowhere kept. Raises ``InvalidError``."""
        _check_name(name)
        secret = f"{_SECRET}-{secrets.token_urlsafe(32)}"
        token = ProxyToken(ids.new(_ID), _hash(secret), name, self._clock.now(), scoped)
        return await self._save(token), secret

    async def rename(self, token_id: str, name: str) -> ProxyToken:
        """Raises ``NotFoundError``, ``InvalidError``."""
        _check_name(name)
        return await self._save(replace(self.get(token_id), name=name))

    async def add_environment(self, token_id: str, environment_id: str) -> None:
        """Let the token open the web functions of one more environment. Raises ``NotFoundError``."""
        token = self.get(token_id)
        environments = token.environments | {environment_id}
        await self._save(replace(token, environments=environments))

    async def remove_environment(self, token_id: str, environment_id: str) -> None:
        """The opposite of ``add_environment``."""
        token = self.get(token_id)
        await self._save(replace(token, environments=token.environments - {environment_id}))

    async def delete(self, token_id: str) -> None:
        """Forget a token. Raises ``NotFoundError``."""
        self.get(token_id)
        await self._database.write(lambda connection: store.delete(connection, token_id))
        self._tokens.pop(token_id, None)

    async def _save(self, token: ProxyToken) -> ProxyToken:
        await self._database.write(lambda connection: store.save(connection, token))
        self._tokens[token.token_id] = token
        return token

    async def _environment_deleting(self, environment: Environment) -> None:
        for token in list(self._tokens.values()):
            if environment.environment_id in token.environments:
                await self.remove_environment(token.token_id, environment.environment_id)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _check_name(name: str) -> None:
    if len(name) > NAME_CHARS_MAX:
        raise InvalidError(f"the name of a proxy token has at most {NAME_CHARS_MAX} characters")
