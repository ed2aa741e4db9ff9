"""A place in a container that a connection uses by itself, past the work loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homeport.calls.model import Call, Output


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect: the address of the container ``task_id`` in this machine's network."""

    task_id: str
    address: str


class Lease:
    """One input that no container is handed: it only counts in the one that has it.

    ``on_change`` is called once the lease is granted, and again when it has ended otherwise than
    by its holder (its container is gone, its app has stopped). A place that is free is granted
    before there is anyone to call.
    """

    __slots__ = ("call", "on_change", "output", "owner", "place")

    def __init__(self) -> None:
        self.call: Call | None = None
        self.place: Place | None = None
        self.output: Output | None = None
        self.on_change: Callable[[], None] = _nobody
        self.owner: object = None
        """Whoever keeps the place beyond the connection that uses it now."""

    def grant(self, place: Place) -> None:
        """A container has room."""
        self.place = place
        self.on_change()

    def finish(self, output: Output) -> None:
        """It ended."""
        self.output = output
        self.on_change()


def _nobody() -> None:
    pass
