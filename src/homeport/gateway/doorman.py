"""Who says whether a request may go to a web server in a container, and finds it a place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from homeport.calls.lease import Lease
from homeport.web.service import Target

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer in place of the container's."""

    status: int
    text: str
    headers: Headers = field(default_factory=Headers)
    body: bytes | None = None
    """If set, in place of a page made of ``text``."""


class Doorman(Protocol):
    """Says who may go where, and finds places."""

    def admit(self, headers: Headers) -> Target | Refusal:
        """Whom a request is for, if it may go there."""
        ...

    def open(self, target: Target, headers: Headers) -> Lease | Refusal:
        """Ask for a place in a container of ``target``; ``close`` it in the end."""
        ...

    def control(
        self, target: Target, path: bytes, headers: Headers, answer: Callable[[Refusal], None]
    ) -> bool:
        """Answer a request that is the gateway's own business; whether it is."""
        ...

    def close(self, lease: Lease) -> None:
        """The place is free."""
        ...

    def explain(self, target: Target, reason: str) -> str:
        """A sentence for a client whose request failed."""
        ...

    def served(
        self, target: Target, path: bytes, task_id: str, arrived_at: float, status: int
    ) -> None:
        """A request that arrived at that Unix time is over; ``status`` 0 if it had no answer."""
        ...
