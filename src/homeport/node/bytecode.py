"""Bytecode for mounts, made by the container's own Python and kept as a layer of its own.

Importing the client from source costs a container about a second. Mounts carry no ``.pyc`` files,
and containers share nothing they write, so without this each start would pay again.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import structlog

from homeport.kernel.errors import InvalidError
from homeport.kernel.ids import new
from homeport.kernel.resources import Limits
from homeport.node.mounts import Joined, MountStore
from homeport.node.runtime.port import (
    DEFAULT_PATH,
    ContainerSpec,
    ContainerStartError,
    Runtime,
    RuntimeUnavailableError,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

COMPILE_TIMEOUT_S = 120.0
ROOTS = ("/pkg", "/__modal/deps")
"""Where the client and its dependencies are: what is worth compiling."""
_TAG = re.compile(r"^[0-9A-Za-z._-]{1,32}$")


class BytecodeStore:
    """``<mount root>/<digest>.<python>/``: only the ``__pycache__`` directories of a mount.

    One that could not be made is not tried again until the node restarts: containers work
    without it, slower.
    """

    def __init__(self, mounts: MountStore) -> None:
        self._mounts = mounts
        self._joined = Joined()
        self._failed: set[str] = set()
        self._work = mounts.root / ".work"

    async def layer(
        self, digest: str, python: str, runtime: Runtime, layers: tuple[Path, ...]
    ) -> Path | None:
        """The layer for mount ``digest`` and Python ``python`` (like ``3.11``), made if need be.

        ``layers`` are the image's and the mount's own, lowest first.
        """
        if not _TAG.match(python):
            raise InvalidError(f"{python!r} is not a Python version")
        name = f"{digest}.{python}"
        target = self._mounts.path(name)
        if target.is_dir():
            return target
        if name in self._failed:
            return None
        made = await self._joined.run(name, self._make(digest, target, runtime, layers))
        if not made:
            self._failed.add(name)
            return None
        return target

    async def _make(
        self, digest: str, target: Path, runtime: Runtime, layers: tuple[Path, ...]
    ) -> bool:
        roots = [r for r in ROOTS if (self._mounts.path(digest) / r.lstrip("/")).is_dir()]
        if not roots:
            return False
        work = self._work / new("py")
        work.mkdir()
        try:
            await self._compile(work / "upper", roots, runtime, layers)
            kept = await asyncio.to_thread(_keep_bytecode, work / "upper", work / "layer", roots)
            if kept:
                os.rename(work / "layer", target)
            return kept
        except (ContainerStartError, RuntimeUnavailableError, TimeoutError, OSError) as error:
            log.warning("no bytecode for a mount", mount=target.name, error=str(error))
            return False
        finally:
            await asyncio.to_thread(shutil.rmtree, work, True)

    async def _compile(
        self, upper: Path, roots: list[str], runtime: Runtime, layers: tuple[Path, ...]
    ) -> None:
        options = ["-q", "-j", "1", "--invalidation-mode", "unchecked-hash"]
        spec = ContainerSpec(
            id=new("py"),
            layers=layers,
            upper=upper,
            command=("python", "-m", "compileall", *options, *roots),
            env={"PATH": DEFAULT_PATH, "PYTHONDONTWRITEBYTECODE": ""},
            limits=Limits(pids=64),
            network="none",
        )
        container = await runtime.start(spec)
        try:
            async with asyncio.timeout(COMPILE_TIMEOUT_S):
                ended = await container.wait()
        finally:
            await container.remove(keep_upper=True)
        if ended.returncode:
            # Some files of real packages are templates or for another Python: the rest is made.
            log.info("not everything was compiled", code=ended.returncode, roots=roots)


def _keep_bytecode(upper: Path, layer: Path, roots: list[str]) -> bool:
    """Move the ``__pycache__`` directories under ``roots`` of ``upper`` to ``layer``."""
    found = False
    for root in roots:
        for path, folders, _files in os.walk(upper / root.lstrip("/")):
            if "__pycache__" not in folders:
                continue
            folders.remove("__pycache__")
            target = layer / Path(path).relative_to(upper)
            target.mkdir(parents=True, exist_ok=True)
            os.rename(Path(path) / "__pycache__", target / "__pycache__")
            found = True
    return found
