"""Notes which methods were answered to which client versions, for the coverage page."""

from __future__ import annotations

import fcntl
import functools
import json
import os
from pathlib import Path

ENVIRONMENT_VARIABLE = "HOMEPORT_RECORD_RPCS"


class Recorder:
    """Keeps a JSON map from method to client versions in a file that processes share.

    Meant for conformance runs: the first answer of a method to a client version costs a locked
    rewrite of the small file, all others a look into a set.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: set[tuple[str, str]] = set()

    @classmethod
    def from_environment(cls) -> Recorder | None:
        """A recorder for the file named by ``HOMEPORT_RECORD_RPCS``, if that is set."""
        name = os.environ.get(ENVIRONMENT_VARIABLE)
        return cls(Path(name)) if name else None

    @staticmethod
    @functools.cache
    def of_process() -> Recorder | None:
        """One for all who ask in this process, so that what it has seen is looked up once."""
        return Recorder.from_environment()

    def note(self, method: str, client_version: str) -> None:
        """An RPC of bare name ``method`` was answered OK."""
        entry = (method, client_version)
        if entry not in self._seen:
            self._seen.add(entry)
            self._add(method, client_version)

    def _add(self, method: str, client_version: str) -> None:
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            recorded: dict[str, list[str]] = json.loads(file.read() or "{}")
            recorded[method] = sorted({*recorded.get(method, []), client_version})
            file.seek(0)
            file.truncate()
            json.dump(recorded, file, sort_keys=True)
