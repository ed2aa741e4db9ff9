"""Sign-ins under way (``modal token new``): asked for by anyone, approved by the machine's owner."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final

from homeport.kernel.clock import Clock
from homeport.kernel.errors import ExhaustedError, InvalidError, NotFoundError
from homeport.workspace.tokens import Tokens

LIFETIME_S: Final = 900.0
"""How long a sign-in waits for its approval, and its token for being fetched."""
COUNT_MAX: Final = 100
_ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
_CODE_CHARACTERS: Final = 8


@dataclass(slots=True)
class Flow:
    """One sign-in. ``code`` is what its user reads to the owner, ``wait_secret`` its client's."""

    flow_id: str
    code: str
    wait_secret: str
    expires_at: float
    token: tuple[str, str] | None = None
    """Id and secret, once approved."""
    approved: asyncio.Event = field(default_factory=asyncio.Event)


class TokenFlows:
    """In memory: who is interrupted by a restart starts again."""

    def __init__(self, tokens: Tokens, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock
        self._flows: dict[str, Flow] = {}

    def begin(self, flow_id: str, *, lifetime_s: int = 0) -> Flow:
        """A new sign-in. Raises ``InvalidError`` for a token that is to expire,
        ``ExhaustedError`` when too many wait."""
        if lifetime_s:
            raise InvalidError("tokens of Homeport do not expire: leave out --expires-in")
        self._forget_old()
        if flow_id in self._flows:
            return self._flows[flow_id]
        if len(self._flows) >= COUNT_MAX:
            raise ExhaustedError("too many sign-ins wait for approval; try again in a few minutes")
        code = "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_CHARACTERS))
        flow = Flow(
            flow_id,
            f"{code[:4]}-{code[4:]}",
            secrets.token_urlsafe(24),
            self._clock.monotonic() + LIFETIME_S,
        )
        self._flows[flow.flow_id] = flow
        return flow

    def find(self, flow_id: str) -> Flow:
        """A sign-in under way. Raises ``NotFoundError``."""
        self._forget_old()
        flow = self._flows.get(flow_id)
        if flow is None:
            raise NotFoundError("this sign-in is over or has expired; start it again")
        return flow

    async def approve(self, code: str) -> str:
        """Give the sign-in with that code a token; its id. Raises ``NotFoundError``."""
        self._forget_old()
        wanted = code.strip().upper().replace("-", "")
        for flow in self._flows.values():
            if flow.token is None and hmac.compare_digest(flow.code.replace("-", ""), wanted):
                flow.token = ("", "")  # nobody else approves it meanwhile
                try:
                    token, secret = await self._tokens.create(f"sign-in {flow.code}")
                except BaseException:
                    flow.token = None
                    raise
                flow.token = (token.token_id, secret)
                flow.approved.set()
                return token.token_id
        raise NotFoundError(f"no sign-in waits with the code {code!r}; it may have expired")

    async def wait(
        self, flow_id: str, wait_secret: str, timeout_s: float
    ) -> tuple[str, str] | None:
        """The token's id and secret; ``None`` if it is not approved within ``timeout_s``.

        Raises ``NotFoundError``, also for another's secret.
        """
        flow = self.find(flow_id)
        if not hmac.compare_digest(flow.wait_secret.encode(), wait_secret.encode()):
            raise NotFoundError("this sign-in is over or has expired; start it again")
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await flow.approved.wait()
        except TimeoutError:
            return None
        return flow.token

    def _forget_old(self) -> None:
        now = self._clock.monotonic()
        self._flows = {key: flow for key, flow in self._flows.items() if flow.expires_at > now}
