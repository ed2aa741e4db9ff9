"""Refuses what is new while disk or memory run short, so that what runs already can go on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from homeport.kernel.clock import Clock
from homeport.kernel.errors import ExhaustedError
from homeport.rpc.context import Identity, TaskIdentity

_NEW: Final = """
    AppCreate AppPublish AttemptRetry AttemptStart BlobCreate DictUpdate FunctionAsyncInvoke
    FunctionCreate FunctionMap FunctionPutInputs FunctionRetryInputs ImageGetOrCreate
    MapStartOrContinue MountPutFile QueuePut SandboxCreate SandboxCreateV2 SharedVolumePutFile
    VolumeCopyFiles VolumeCopyFiles2 VolumePutFiles VolumePutFiles2
"""
NEW: Final = frozenset(_NEW.split())
"""Reviewed: these bring work or content. Looking up, polling, cancelling, deleting and what containers
say about their inputs goes on."""
_OF_RUNNING_WORK: Final = frozenset({"BlobCreate"})
"""Containers need these to end what they have begun: large results."""
_LOOKED_S: Final = 0.25
"""How long what was seen of disk and memory counts."""
_MIB: Final = 1024 * 1024
_MEMINFO: Final = Path("/proc/meminfo")


class Admission:
    """Looks at the disk of ``folder`` and at the machine's memory; reserves in MiB, 0 for none."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        disk_reserve_mb: int,
        memory_reserve_mb: int,
        meminfo: Path = _MEMINFO,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._disk_reserve = disk_reserve_mb * _MIB
        self._memory_reserve = memory_reserve_mb * _MIB
        self._meminfo = meminfo
        self._looked_at = float("-inf")
        self._refusal = ""

    def check(self, method: str, identity: Identity) -> None:
        """Raises ``ExhaustedError`` if ``method`` has to wait for room."""
        if method not in NEW:
            return
        if method in _OF_RUNNING_WORK and isinstance(identity, TaskIdentity):
            return
        now = self._clock.monotonic()
        if now - self._looked_at > _LOOKED_S:
            self._looked_at = now
            self._refusal = self._look()
        if self._refusal:
            raise ExhaustedError(self._refusal)

    def _look(self) -> str:
        """Why nothing new is taken now; empty if it is."""
        if self._disk_reserve:
            free = shutil.disk_usage(self._folder).free
            if free < self._disk_reserve:
                return _sentence("disk", free, self._disk_reserve)
        if self._memory_reserve:
            free = self._memory_available()
            if free is not None and free < self._memory_reserve:
                return _sentence("memory", free, self._memory_reserve)
        return ""

    def _memory_available(self) -> int | None:
        """Bytes; ``None`` where the system does not say."""
        try:
            for line in self._meminfo.read_text().splitlines():
                name, _, rest = line.partition(":")
                if name == "MemAvailable":
                    return int(rest.split()[0]) * 1024
        except (OSError, ValueError, IndexError):
            return None
        return None


def _sentence(what: str, free: int, reserve: int) -> str:
    return (
        f"The Homeport server is short of {what}: {free // _MIB} MiB are left, and "
        f"{reserve // _MIB} MiB are kept for what runs already (setting {what}_reserve_mb). "
        "Free some and try again; what runs goes on."
    )
