"""The image ``ghcr.io/astral-sh/uv`` made from uv's wheel on the package index."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from uv import find_uv_bin

from homeport.kernel.clock import Clock
from homeport.kernel.decoding import UNREADABLE
from homeport.node.builder.errors import BuildError
from homeport.node.layers import layer_key

PROGRAMS = ("uv", "uvx")
_FRESH_S = 86_400.0
"""For so long a version that is not exact (``latest``) means what it meant before."""
_INSTALL_TIMEOUT_S = 300.0


class _Resolved(msgspec.Struct, frozen=True):
    version: str
    at: float


@dataclass(frozen=True, slots=True)
class UvPrograms:
    """uv's programs in ``folder``, of exactly this ``version``."""

    version: str
    folder: Path


class UvWheels:
    """Gets uv in the versions that are asked for, kept under ``directory``."""

    def __init__(
        self, directory: Path, clock: Clock, environ: Mapping[str, str] | None = None
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._environ = os.environ if environ is None else environ

    async def get(self, wanted: str) -> UvPrograms:
        """uv ``wanted`` (``latest``, ``0.9``, ``0.9.3``). Raises ``BuildError``."""
        return await asyncio.to_thread(self._known, wanted) or await self._install(wanted)

    def _known(self, wanted: str) -> UvPrograms | None:
        try:
            found = msgspec.json.decode(self._record(wanted).read_bytes(), type=_Resolved)
        except (FileNotFoundError, *UNREADABLE):
            return None
        programs = UvPrograms(found.version, self._directory / found.version)
        is_exact = wanted == found.version
        is_fresh = self._clock.now() - found.at < _FRESH_S
        return programs if (is_exact or is_fresh) and programs.folder.is_dir() else None

    async def _install(self, wanted: str) -> UvPrograms:
        work = self._directory / f".work.{os.getpid()}.{layer_key(wanted)}"
        try:
            error = await self._pip(_requirement(wanted), work)
            if error:
                return await asyncio.to_thread(self._older, wanted, error)
            return await asyncio.to_thread(self._keep, wanted, work)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, True)

    async def _pip(self, requirement: str, work: Path) -> str:
        """Install into ``work``; what went wrong, empty if nothing."""
        await asyncio.to_thread(work.mkdir, parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            find_uv_bin(),
            *("pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"),
            *("--target", str(work), requirement),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**self._environ, "UV_LINK_MODE": "copy"},
            cwd="/",
        )
        try:
            async with asyncio.timeout(_INSTALL_TIMEOUT_S):
                _, errors = await process.communicate()
        except TimeoutError:
            return f"uv did not end within {_INSTALL_TIMEOUT_S:.0f} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return ""
        return " ".join(errors.decode(errors="replace").split())[-500:] or "uv failed"

    def _keep(self, wanted: str, work: Path) -> UvPrograms:
        metadata = next(work.glob("uv-*.dist-info"), None)
        if metadata is None or not (work / "bin" / "uv").is_file():
            raise BuildError(f"the wheel of uv {wanted} has no program for this machine")
        version = metadata.name.removeprefix("uv-").removesuffix(".dist-info")
        folder = self._directory / version
        if not folder.is_dir():
            (work / "bin").rename(folder)
        resolved = _Resolved(version, self._clock.now())
        for name in {wanted, version}:
            temporary = work / "record"
            temporary.write_bytes(msgspec.json.encode(resolved))
            temporary.replace(self._record(name))
        return UvPrograms(version, folder)

    def _older(self, wanted: str, error: str) -> UvPrograms:
        """What the version meant before, if the index cannot be reached now."""
        try:
            found = msgspec.json.decode(self._record(wanted).read_bytes(), type=_Resolved)
        except (FileNotFoundError, *UNREADABLE):
            raise BuildError(
                f"uv {wanted} cannot be had from the package index of this node: {error}"
            ) from None
        return UvPrograms(found.version, self._directory / found.version)

    def _record(self, wanted: str) -> Path:
        return self._directory / f"{wanted}.json"


def _requirement(wanted: str) -> str:
    if wanted == "latest":
        return "uv"
    return f"uv=={wanted}" if wanted.count(".") == 2 else f"uv=={wanted}.*"
