"""Notes which methods were answered to which client versions, for the coverage page."""

from __future__ import annotations

import json
import os
from pathlib import Path

ENVIRONMENT_VARIABLE = "HOMEPORT_RECORD_RPCS"


class Recorder:
    """Appends each distinct (method, client version) to a file, one JSON object a line.

    Several processes may append to the same file: every line is one short ``write`` to a file
    opened for appending.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: set[tuple[str, str]] = set()

    @classmethod
    def from_environment(cls) -> Recorder | None:
        """A recorder for the file named by ``HOMEPORT_RECORD_RPCS``, if that is set."""
        name = os.environ.get(ENVIRONMENT_VARIABLE)
        return cls(Path(name)) if name else None

    def note(self, method: str, client_version: str) -> None:
        """An RPC of bare name ``method`` was answered OK."""
        entry = (method, client_version)
        if entry in self._seen:
            return
        self._seen.add(entry)
        line = json.dumps({"rpc": method, "client": client_version})
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
