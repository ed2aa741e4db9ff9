"""Who is calling: from an RPC's metadata to an identity."""

from __future__ import annotations

from typing import Final, Protocol

from homeport.kernel.errors import UnauthenticatedError
from homeport.rpc.context import AnonymousIdentity, ClientIdentity, Identity
from homeport.transport.dispatch import IncomingCall

ANONYMOUS_METHODS: Final = frozenset({"TokenFlowCreate", "TokenFlowWait", "CliCommandSuggest"})
"""Methods that the client calls before it has a token. Reviewed: none of them tells or changes
anything of the installation's."""

_CLIENT_ONLY: Final = """
    EnvironmentDelete EnvironmentUpdate TokenDelete TokenDisable TokenEnable TokensList
    WebhookTokenCreate WebhookTokenDelete WebhookTokenEnvironmentAdd WebhookTokenEnvironmentList
    WebhookTokenEnvironmentRemove WebhookTokenList WebhookTokenListForEnvironment
    WebhookTokenUpdate WorkspaceSetDefaultEnvironment WorkspaceSetImageBuilderVersion
"""
CLIENT_ONLY: Final = frozenset(_CLIENT_ONLY.split())
"""Reviewed: what runs the installation itself. Code in a container has the rights of its app, which
looks up and calls others, but not these."""

ANONYMOUS: Final = AnonymousIdentity()
_CONTAINER: Final = "3"
_IDENTITIES_MAX: Final = 10_000


class TokenVerifier(Protocol):
    """Knows the installation's tokens (``workspace.tokens.Tokens``)."""

    def verify(self, token_id: str, secret: str) -> bool:
        """Whether that pair may be used now. Must not block."""
        ...


class Authenticator:
    """Checks the credentials of RPCs that arrive over the network.

    Containers send none: they speak through their node, which vouches for them, and never get
    here (``Registry.forwarded_unary``).
    """

    def __init__(self, tokens: TokenVerifier) -> None:
        self._tokens = tokens
        self._identities: dict[str, ClientIdentity] = {}

    def identify(self, call: IncomingCall, method: str) -> Identity:
        """The caller of ``method``.

        Raises ``UnauthenticatedError`` when the credentials are missing or wrong.
        """
        get = call.metadata.get
        token_id = get("x-modal-token-id", "")
        secret = get("x-modal-token-secret", "")
        if token_id and secret:
            if self._tokens.verify(token_id, secret):
                return self._identity(token_id)
            if method in ANONYMOUS_METHODS:
                return ANONYMOUS
            raise UnauthenticatedError(
                f"this server does not know the token {token_id[:32]!r} with that secret, or it is "
                "disabled; run `homeport env` on the server's machine for one that works"
            )
        if method in ANONYMOUS_METHODS:
            return ANONYMOUS
        raise UnauthenticatedError(_missing(call))

    def _identity(self, token_id: str) -> ClientIdentity:
        identity = self._identities.get(token_id)
        if identity is None:
            if len(self._identities) >= _IDENTITIES_MAX:
                self._identities.clear()
            identity = self._identities[token_id] = ClientIdentity(token_id)
        return identity


def _missing(call: IncomingCall) -> str:
    if call.metadata.get("x-modal-client-type") == _CONTAINER:
        return (
            "containers reach Homeport through the node that runs them, not over the network; "
            "to use the client elsewhere unset MODAL_IS_REMOTE and run `homeport env` for a token"
        )
    if "x-modal-refresh-token" in call.metadata or "x-modal-oauth-client-id" in call.metadata:
        return (
            "Homeport does not take OAuth credentials; run `homeport env` on the server's machine "
            "for a token id and secret"
        )
    return "no token was sent; run `homeport env` on the server's machine for one"
