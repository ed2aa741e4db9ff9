"""The order in which a function's variants are listed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from homeport.functions.model import FunctionRecord

RANKED_MAX: Final = 1_000
"""So many are listed by what they do; more are listed by their age, in pages."""
PAGE_MAX: Final = 500


class Cursor(NamedTuple):
    """Where a listing by age goes on: after the variant ``function_id`` of that time."""

    created_at: float
    function_id: str


class Page(NamedTuple):
    """A part of a listing."""

    variants: list[FunctionRecord]
    following: Cursor | None
    """``None`` at the end."""
    is_ranked: bool
    """Those with the most containers come first; otherwise the newest."""


def page(
    variants: Sequence[FunctionRecord],
    *,
    limit: int,
    cursor: Cursor | None,
    containers: Callable[[str], int],
) -> Page:
    """The first ``limit`` variants (0 = all), or the next page after ``cursor``.

    ``containers`` tells how many a variant has (RPC ``FunctionListVariants``).
    """
    by_age = sorted(variants, key=lambda record: (-record.created_at, record.function_id))
    if cursor is None and 0 < limit <= RANKED_MAX:
        ranked = sorted(by_age, key=lambda record: -containers(record.function_id))
        return Page(ranked[:limit], None, is_ranked=True)
    if cursor is not None:
        after = (-cursor.created_at, cursor.function_id)
        by_age = [each for each in by_age if (-each.created_at, each.function_id) > after]
    taken = by_age[:PAGE_MAX]
    following = None
    if len(by_age) > len(taken):
        following = Cursor(taken[-1].created_at, taken[-1].function_id)
    return Page(taken, following, is_ranked=False)
