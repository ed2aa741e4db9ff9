"""Who may talk to the router: the bearer of a token that the server issued for that container."""

from __future__ import annotations

from typing import Final

from homeport.kernel.clock import Clock
from homeport.kernel.errors import UnauthenticatedError, UnavailableError
from homeport.kernel.signing import Signer
from homeport.link.messages import ROUTER_AUDIENCE
from homeport.transport.dispatch import IncomingCall

LEEWAY_S: Final = 120.0
"""How far this machine's clock may be ahead of the server's: a client does not ask for a new token
while it believes that its own is good."""


class _Late:
    """A clock that is behind."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self) -> float:
        return self._clock.now() - LEEWAY_S

    def monotonic(self) -> float:
        return self._clock.monotonic()


class Access:
    """Checks tokens with the key that the server named last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = _Late(clock)
        self._signer: Signer | None = None

    def use(self, key: bytes) -> None:
        """From ``Welcome``."""
        self._signer = Signer(key, self._clock) if key else None

    def authorize(self, call: IncomingCall, task_id: str) -> None:
        """Raises ``UnauthenticatedError`` unless the call's token is for that container.

        ``UnavailableError`` while the node has not been welcomed yet.
        """
        kind, _, token = call.metadata.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise UnauthenticatedError("this address takes an access token; the server gives it")
        if self._signer is None:
            # not a refusal: clients would not ask again with a token that is good for long
            raise UnavailableError("this node has not heard from its server yet; try again")
        claims = self._signer.verify(token.strip(), ROUTER_AUDIENCE)
        if claims.sub != task_id:
            raise UnauthenticatedError(f"the access token is not for container {task_id}")
