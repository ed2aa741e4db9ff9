"""Trying a runtime: a real container, on a root made of the machine's own programs.

``works`` remembers that one works for as long as neither the tool nor the kernel changes. A failure
is not remembered: what was in the way need not be in the tool, and may be gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

import msgspec

from homeport.kernel.decoding import UNREADABLE
from homeport.kernel.resources import Limits
from homeport.node.cgroups import CgroupError
from homeport.node.runtime.create import create_runtime
from homeport.node.runtime.port import (
    Bind,
    ContainerSpec,
    ContainerStartError,
    ExecError,
    ExecSpec,
    RuntimeUnavailableError,
)

PROGRAM: Final = "/bin/true"
_HOST_FOLDERS: Final = ("usr", "bin", "lib", "lib64")
_NODE_ID: Final = "no-probe"
_FOLDER: Final = "probe-"
_FILE: Final = "runtime-trials.json"


class Trial(msgspec.Struct, frozen=True):
    """What came of trying a runtime, and with what. ``failure`` is empty if it works."""

    subject: str
    failure: str


async def works(home: Path, name: str) -> Trial:
    """Whether the runtime ``name``, a program on PATH, can start containers for a node of ``home``."""
    known = await recall(home, name)
    if known is not None:
        return known
    trial = Trial(await asyncio.to_thread(_subject, name), await _try(home, name))
    if not trial.failure:
        with contextlib.suppress(OSError):  # else it is tried again
            await asyncio.to_thread(_remember, home / "node" / _FILE, name, trial)
    return trial


async def recall(home: Path, name: str) -> Trial | None:
    """What ``works`` would say, if that is known without a container. Takes no time."""
    subject = await asyncio.to_thread(_subject, name)
    if not subject:
        return Trial("", f"{name} is not installed")
    known = (await asyncio.to_thread(_read, home / "node" / _FILE)).get(name)
    return known if known is not None and known.subject == subject and not known.failure else None


async def sweep_trials(home: Path) -> None:
    """Undo what is left of trials whose process was killed."""
    for folder in (home / "node").glob(f"{_FOLDER}*"):
        try:
            held = _hold(folder)
        except OSError:  # it goes on, or is over
            continue
        try:
            if (folder / "run").is_dir():
                runtime = await create_runtime("", folder / "run", _NODE_ID)
                try:
                    await runtime.sweep()
                finally:
                    await runtime.close()
            await asyncio.to_thread(shutil.rmtree, folder, True)
        finally:
            os.close(held)


def _hold(folder: Path) -> int:
    """A descriptor that keeps others from taking the folder for left over. Raises ``OSError``."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


async def _try(home: Path, name: str) -> str:
    try:
        async with trial_folder(home) as folder:
            _, code = await run_container(folder, name)
    except (RuntimeUnavailableError, ContainerStartError, CgroupError, ExecError, OSError) as error:
        return str(error)
    return f"{PROGRAM} ended with {code}" if code else ""


def _subject(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        return ""
    found = os.stat(path)
    return f"{path} {found.st_size} {found.st_mtime_ns} on {os.uname().release}"


def _read(place: Path) -> dict[str, Trial]:
    try:
        return msgspec.json.decode(place.read_bytes(), type=dict[str, Trial])
    except (OSError, *UNREADABLE):
        return {}


def _remember(place: Path, name: str, trial: Trial) -> None:
    known = {**_read(place), name: trial}
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(known))
    draft.rename(place)


@contextlib.asynccontextmanager
async def trial_folder(home: Path) -> AsyncGenerator[Path]:
    """A folder in the home, as overlays depend on the file system; gone afterwards."""
    folder = home / "node" / f"{_FOLDER}{os.getpid()}"
    missing = [path for path in folder.parents if not path.exists()]
    held = -1
    try:
        folder.mkdir(mode=0o700, parents=True)
        held = _hold(folder)
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, True)
        if held >= 0:
            os.close(held)
        with contextlib.suppress(OSError):  # somebody has begun to use them
            for path in missing:
                path.rmdir()


async def run_container(folder: Path, name: str) -> tuple[float, int]:
    """Start a container in ``folder``, run a second program in it and let it end.

    How long that took, and what the programs returned. Raises as ``create_runtime``, ``Runtime.start``
    and ``Container.exec``.
    """
    layer, binds = _host_root(folder / "layer")
    runtime = await create_runtime(name, folder / "run", _NODE_ID)
    stdin, hold = os.pipe()
    try:
        began = time.monotonic()
        started = await runtime.start(
            ContainerSpec(
                id="probe",
                layers=(layer,),
                upper=folder / "upper",
                command=("/bin/sh", "-c", "read _"),
                env={},
                limits=Limits(milli_cpu=100, milli_cpu_max=1000, memory_mb=64, pids=32),
                binds=binds,
                network="nat",
                stdin_fd=stdin,
            )
        )
        os.close(stdin)
        stdin = -1
        try:
            second = await started.exec(ExecSpec((PROGRAM,)))
            code = await second.wait()
            os.close(hold)
            hold = -1
            await started.wait()
            return time.monotonic() - began, code
        finally:
            await started.remove()
    finally:
        for fd in (stdin, hold):
            if fd >= 0:
                os.close(fd)
        await runtime.close()


def _host_root(layer: Path) -> tuple[Path, tuple[Bind, ...]]:
    """A root with the machine's own programs, read-only, and nothing of its data."""
    layer.mkdir()
    binds: list[Bind] = []
    for name in _HOST_FOLDERS:
        there = Path("/") / name
        if there.is_symlink():
            (layer / name).symlink_to(os.readlink(there))
        elif there.is_dir():
            (layer / name).mkdir()
            binds.append(Bind(there, f"/{name}"))
    return layer, tuple(binds)
