"""Numbers that come from outside as what they stand for."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Protocol, TypeVar

from homeport.kernel.errors import InvalidError

E = TypeVar("E", bound=IntEnum)


class Moment(Protocol):
    """A point of time as requests have it."""

    def ToNanoseconds(self) -> int: ...


def time_ns(moment: Moment, what: str) -> int:
    """In nanoseconds since 1970. Raises ``InvalidError`` naming ``what`` it is, if it is none."""
    try:
        return moment.ToNanoseconds()
    except ValueError as error:
        raise InvalidError(f"{what} is no time: {error}") from None


def member(kind: type[E], number: int, what: str) -> E:
    """The member of ``kind`` with that number. Raises ``InvalidError`` naming ``what`` it is of."""
    try:
        return kind(number)
    except ValueError:
        known = ", ".join(f"{item.value} ({item.name.lower()})" for item in kind)
        raise InvalidError(f"{what} cannot be {number}; there are {known}") from None


def wait_s(asked: float, at_most: float = 86400.0) -> float:
    """How long to wait for one who asks for ``asked`` seconds: what is no number is no time."""
    return 0.0 if math.isnan(asked) else min(max(asked, 0.0), at_most)
