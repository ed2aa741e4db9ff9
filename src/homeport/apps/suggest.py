"""What a name that was not found may have been meant to be. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

QUERY_MAX: Final = 200
"""Characters of a name that are looked at."""
SUGGESTIONS_MAX: Final = 20
_LIKENESS: Final = 0.6
"""What is less alike than this is not suggested."""
_SEPARATORS: Final = re.compile(r"::|[/:.]")


class Name(NamedTuple):
    """What there is: an app (``app`` is empty), or a function or server of an app."""

    app: str
    name: str


def suggest(query: str, names: Iterable[Name], limit: int) -> list[Name]:
    """Up to ``limit`` of ``names`` that ``query`` was most likely meant to be, the likeliest first.

    Case, ``-`` for ``_``, and what stands between app and function make no difference.
    """
    wanted = _plain(query[:QUERY_MAX])
    if not wanted:
        return []
    own = wanted.rpartition("/")[2]
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(wanted)
    within = difflib.SequenceMatcher(autojunk=False)
    within.set_seq2(own)
    found: list[tuple[float, Name]] = []
    for name in names:
        whole = _plain(f"{name.app}/{name.name}" if name.app else name.name)
        likeness = _likeness(matcher, whole)
        if name.app:  # the app may be missing or quite another one
            likeness = max(likeness, 0.9 * _likeness(within, _plain(name.name)))
        if likeness >= _LIKENESS:
            found.append((likeness, name))
    found.sort(key=lambda item: (-item[0], item[1]))
    return [name for _, name in found[: min(limit, SUGGESTIONS_MAX)]]


def _plain(text: str) -> str:
    """Without what is easily mistaken; the ``.*`` of a class is no part of its name."""
    text = text.removesuffix(".*").lower().replace("_", "-")
    return _SEPARATORS.sub("/", text)


def _likeness(matcher: difflib.SequenceMatcher[str], text: str) -> float:
    matcher.set_seq1(text)
    if matcher.real_quick_ratio() < _LIKENESS or matcher.quick_ratio() < _LIKENESS:
        return 0.0
    return matcher.ratio()
