"""The pure rules of network file systems: what they are, paths, patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple

from homeport.kernel import ids
from homeport.kernel.errors import InvalidError
from homeport.objects.model import Kind

NETWORK_FILE_SYSTEM: Final = Kind("network_file_system", ids.SHARED_VOLUME, "NetworkFileSystem")
PATH_BYTES_MAX: Final = 4_096
NAME_BYTES_MAX: Final = 255
"""What Linux takes in one path and in one name."""


class EntryKind(Enum):
    """What a path is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


class Entry(NamedTuple):
    """One path of a listing. ``mtime`` is in Unix seconds, ``size`` in bytes."""

    path: str
    kind: EntryKind
    mtime: float
    size: int


def normalised(path: str) -> str:
    """``path`` relative to the root, without ``.``, doubled and outer slashes; the root is empty.

    Raises ``InvalidError`` for what no file can be called.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidError(f"the path {path[:200]!r} contains '..', which leads out of it")
    result = "/".join(parts)
    if "\0" in result or any(len(part.encode()) > NAME_BYTES_MAX for part in parts):
        raise InvalidError(
            f"{path[:200]!r} is not a path: names have no NUL and up to {NAME_BYTES_MAX} bytes"
        )
    if len(result.encode()) > PATH_BYTES_MAX:
        raise InvalidError(f"the path {path[:100]!r}… is longer than {PATH_BYTES_MAX} bytes")
    return result


def file_path(path: str) -> str:
    """``normalised(path)`` of a file to be written.

    Raises ``InvalidError`` for the root and for a path that says it is a directory.
    """
    result = normalised(path)
    if not result or path.endswith("/"):
        raise InvalidError(f"{path!r} is a directory; say what the file in it is to be called")
    return result


def is_pattern(path: str) -> bool:
    """Whether a listing's path asks for what matches (``*``, ``**``), as clients say it."""
    return "*" in path


class Glob:
    """A path with ``*`` and ``?`` within one name and ``**`` across any number of them."""

    def __init__(self, path: str) -> None:
        names = normalised(path).split("/")
        if names[-1] == "**":
            names.append("*")  # what is in a directory, not the directory
        self._names = names

    def matches(self, path: str) -> bool:
        """Whether it names the normalised ``path``."""
        states = self._reached({0})
        for name in path.split("/"):
            states = self._reached(set(self._after(states, name)))
        return len(self._names) in states

    def _after(self, states: set[int], name: str) -> Iterator[int]:
        for state in states:
            if state < len(self._names):
                if self._names[state] == "**":
                    yield state
                elif fnmatch.fnmatchcase(name, self._names[state]):
                    yield state + 1

    def _reached(self, states: set[int]) -> set[int]:
        """With what follows a ``**`` that stands for nothing."""
        for state in sorted(states):
            while state < len(self._names) and self._names[state] == "**":
                state += 1
                states.add(state)
        return states
