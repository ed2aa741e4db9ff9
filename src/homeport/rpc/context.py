"""Who calls, and with what: the second argument of every RPC handler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from homeport.kernel import ids
from homeport.kernel.errors import PermissionDeniedError
from homeport.transport.dispatch import Trailers


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """A person or program with a token (client types CLIENT and the JS/Go SDKs)."""

    token_id: str


@dataclass(frozen=True, slots=True)
class TaskIdentity:
    """A container, known by the socket it speaks through; its node vouches for it."""

    task_id: str
    app_id: str
    environment: str
    """Name of the environment its app lives in: the default of its look-ups."""
    function_id: str = ""


@dataclass(frozen=True, slots=True)
class AnonymousIdentity:
    """No credentials: only the methods on the short public list accept it."""


Identity = ClientIdentity | TaskIdentity | AnonymousIdentity


def caller_of(identity: Identity) -> str:
    """A name for the caller: its token's or its task's id, empty without credentials."""
    if isinstance(identity, ClientIdentity):
        return identity.token_id
    return identity.task_id if isinstance(identity, TaskIdentity) else ""


@dataclass(slots=True)
class Context:
    """One RPC's surroundings.

    ``http_base`` is the URL (no trailing slash) under which *this caller* reaches the HTTP
    gateway: clients by the authority they used, containers by their node's relay.
    """

    method: str
    request_id: str
    identity: Identity
    client_version: str
    """``x-modal-client-version``, e.g. ``1.6.4``; empty if not said."""
    client_type: int
    """``x-modal-client-type``: 1 client, 3 container, 7–9 JS/Go SDKs."""
    http_base: str
    idempotency_key: str = ""
    """``x-idempotency-key``: constant over the retries of one logical unary call."""
    timeout_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    trailers: Trailers = field(default_factory=list[tuple[str, str]])

    def warn(self, text: str) -> None:
        """Show ``text`` once at the client (``x-modal-warning``, clients 1.6+)."""
        self.trailers.append(("x-modal-warning", quote(text)))

    @property
    def task(self) -> TaskIdentity:
        """The calling container; raises ``PermissionDeniedError`` for any other caller."""
        if isinstance(self.identity, TaskIdentity):
            return self.identity
        raise PermissionDeniedError(f"{self.method} is for containers only")

    def require_client(self) -> ClientIdentity:
        """The calling token's holder. Raises ``PermissionDeniedError`` for any other caller."""
        if isinstance(self.identity, ClientIdentity):
            return self.identity
        raise PermissionDeniedError(f"{self.method} is not for containers: it needs a token")

    def may_see(self, app_id: str) -> bool:
        """Whether the caller is told what goes on in an app: containers are of their own only."""
        return not isinstance(self.identity, TaskIdentity) or self.identity.app_id == app_id

    def require_app(self, app_id: str) -> None:
        """Raises ``PermissionDeniedError`` for a container of another app."""
        if not self.may_see(app_id):
            raise PermissionDeniedError(
                f"{self.method}: a container is told of its own app only; use a client with a token"
            )

    def new_id(self, prefix: str) -> str:
        """An id for what this call creates: the same one in every retry of the call, also in one
        that a restarted server answers."""
        if not self.idempotency_key:
            return ids.new(prefix)
        return ids.derive(prefix, caller_of(self.identity), self.method, self.idempotency_key)

    @property
    def operation(self) -> str:
        """This call's name in the record of operations (``storage.operations``): the same in
        every retry; empty if the client sent no key and so will not repeat it."""
        if not self.idempotency_key:
            return ""
        return f"{self.method} {caller_of(self.identity)} {self.idempotency_key}"

    @property
    def environment(self) -> str:
        """The environment that an empty ``environment_name`` means for this caller."""
        return self.identity.environment if isinstance(self.identity, TaskIdentity) else ""
