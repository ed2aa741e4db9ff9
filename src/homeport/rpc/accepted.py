"""Marks handlers that take a request and deliberately do nothing with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

_ATTRIBUTE = "__homeport_accepted__"


def accepted(reason: str) -> Callable[[F], F]:
    """Decorate a handler whose answer is a no-op; ``reason`` appears on the coverage page."""

    def mark(handler: F) -> F:
        setattr(handler, _ATTRIBUTE, reason)
        return handler

    return mark


def accepted_reason(handler: object) -> str | None:
    """The reason given to ``accepted``, or ``None`` for a handler that does its work."""
    return getattr(handler, _ATTRIBUTE, None)
