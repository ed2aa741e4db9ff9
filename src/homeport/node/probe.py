"""What this machine can run: the checks behind ``homeport doctor``.

The last one starts a real container, with limits and a network, on a root made of the machine's own
programs: what a list of requirements would overlook shows there. ``python -m homeport.node.probe
HOME [RUNTIME]`` prints the checks as JSON.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

import msgspec

from homeport.node import caches
from homeport.node.agent import capacity
from homeport.node.builder.debian import KEYRING
from homeport.node.cgroups import CgroupError, Layout, detect
from homeport.node.gpus.devices import RUN_HOOKS
from homeport.node.gpus.inventory import NO_GPUS, GpuOptions, Inventory, discover
from homeport.node.gpus.libraries import missed
from homeport.node.gpus.options import gpu_options
from homeport.node.leaks import find_leaks
from homeport.node.runtime.create import AUTO, DEFAULT, NAMES, check_default
from homeport.node.runtime.handshake import program
from homeport.node.runtime.port import (
    ContainerStartError,
    ExecError,
    RuntimeUnavailableError,
)
from homeport.node.runtime.runsc_program import INSTALL
from homeport.node.trial import PROGRAM, run_container, trial_folder, works
from homeport.pythons import host_pythons
from homeport.settings import load

DISK_FREE_MIN_BYTES = 5 * 1024**3
"""Below that a warning: a Debian base, a Python and a few packages are about one GiB."""

State = Literal["ok", "warning", "failed"]


class Check(msgspec.Struct, frozen=True):
    """One thing looked at. ``failed`` = function containers cannot run before it is mended.

    ``found`` says what is so, ``fix`` what to do about it (empty if nothing).
    """

    name: str
    state: State
    found: str
    fix: str = ""


async def probe(
    home: Path,
    runtime: str = "",
    sandbox_runtime: str = "",
    options: GpuOptions = NO_GPUS,
    caches_bytes_max: int = 0,
) -> list[Check]:
    """All checks for a node of ``home`` with these settings (empty = the default one)."""
    checks = [*system_checks(), control_groups(detect()), disk(home)]
    checks.append(build_caches(home, caches_bytes_max))
    left = left_overs(home)
    if left is not None:
        checks.append(left)
    checks += [runtimes(), bases(), await pythons(), await names()]
    checks += gpus(await asyncio.to_thread(discover, options), runtime)
    if all(check.state != "failed" for check in checks):
        checks.append(await container(home, runtime))
        checks.append(await sandboxes(home, runtime, sandbox_runtime))
    return checks


def system_checks() -> list[Check]:
    """Operating system, machine, user, size."""
    system = os.uname()
    checks = [Check("system", "ok", f"{system.sysname} {system.release} on {system.machine}")]
    if system.sysname != "Linux":
        return [
            Check("system", "failed", system.sysname, "run Homeport on Linux (a machine or a VM)")
        ]
    try:
        program("init")
    except RuntimeUnavailableError as error:
        checks = [Check("system", "failed", str(error), "use an x86-64 or arm64 machine")]
    if os.geteuid() == 0:
        checks.append(Check("user", "ok", "root"))
    else:
        checks.append(
            Check(
                "user",
                "failed",
                f"user id {os.geteuid()}: containers need root on this machine",
                "run homeport as root, e.g. with sudo -E",
            )
        )
    size = capacity()
    cores, memory = size.milli_cpu // 1000, size.memory_mb / 1024
    return [*checks, Check("capacity", "ok", f"{cores} CPUs and {memory:.1f} GiB for containers")]


def control_groups(layout: Layout) -> Check:
    """Whether memory, CPU and processes of a container can be limited."""
    missing = layout.missing()
    if not missing:
        return Check("limits", "ok", f"control groups {layout.version}")
    return Check(
        "limits",
        "failed",
        f"control groups {layout.version} without {', '.join(missing)}",
        "mount /sys/fs/cgroup (cgroup2) with these controllers; in a container or chroot, "
        "give it the host's",
    )


def disk(home: Path) -> Check:
    """Room where the home is, or will be."""
    place = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 1024**3:.0f} GiB free in {place}"
    if free < DISK_FREE_MIN_BYTES:
        return Check("disk", "warning", found, "images need room: choose another home with --home")
    return Check("disk", "ok", found)


def build_caches(home: Path, bytes_max: int) -> Check:
    """What builds keep for later ones, and how much that may be (0 = the default)."""
    place = next(path for path in (home, *home.parents) if path.exists())
    used = sum(caches.sizes(home / "node" / "builder").values())
    most = bytes_max or caches.default_bound(place)
    found = (
        f"{used / 1024**3:.1f} of at most {most / 1024**3:.1f} GiB that builds keep for later ones"
    )
    if used > most:
        fix = "a running build may hold it; homeport image prune --caches deletes what none uses"
        return Check("build caches", "warning", found, fix)
    return Check("build caches", "ok", found)


def left_overs(home: Path) -> Check | None:
    """What a crash left; ``None`` while Homeport runs in this home."""
    found = find_leaks(home)
    if any(line.startswith("process ") for line in found):
        return None
    if not found:
        return Check("left-overs", "ok", "none")
    return Check(
        "left-overs",
        "warning",
        f"{len(found)} of an earlier run, the first: {found[0]}",
        "the next homeport up removes them",
    )


def runtimes() -> Check:
    """Which isolation tools are here."""
    others = [name for name in NAMES if name != DEFAULT and shutil.which(name)]
    found = f"{DEFAULT} (default)" + "".join(f", {name}" for name in others)
    return Check("runtimes", "ok", found)


async def sandboxes(home: Path, runtime: str, sandbox_runtime: str) -> Check:
    """Which tool isolates sandboxes, and why."""
    default = runtime or DEFAULT
    shared = f"{default} isolates them from each other; they share this machine's kernel"
    if sandbox_runtime in ("", default):
        return Check("sandboxes", "ok", shared)
    automatic = sandbox_runtime == AUTO
    name = "runsc" if automatic else sandbox_runtime
    trial = await works(home, name)
    if not trial.failure:
        return Check("sandboxes", "ok", f"{name} isolates them ({trial.subject})")
    if automatic and not trial.subject:
        return Check("sandboxes", "ok", shared, f"for a kernel of their own: {INSTALL}")
    found = f"{name} does not work here: {trial.failure}"
    if automatic:
        fix = f"mend that, or set sandbox_runtime to {default}"
        return Check("sandboxes", "warning", f"{found}; {default} isolates them", fix)
    fix = f"mend that, or set sandbox_runtime to {AUTO} or {default}"
    return Check("sandboxes", "failed", found, fix)


def bases() -> Check:
    """Whether Debian based images can be made."""
    if shutil.which("mmdebstrap") is None:
        if os.geteuid() == 0 and shutil.which("apt-get"):
            found = "mmdebstrap is not installed; the first image build does that with apt-get"
            return Check("base images", "ok", found)
        return Check(
            "base images",
            "warning",
            "mmdebstrap is not installed: no Debian based image can be made",
            "install your distribution's package mmdebstrap",
        )
    if not KEYRING.exists():
        return Check(
            "base images",
            "warning",
            f"mmdebstrap without {KEYRING}",
            "install the package debian-archive-keyring",
        )
    return Check("base images", "ok", "mmdebstrap")


async def pythons() -> Check:
    """CPythons that images can be given. Others come from Debian or are downloaded by uv."""
    found = [python.version for python in await host_pythons()]
    text = ", ".join(found) if found else "none on this machine; from Debian, or downloaded by uv"
    return Check("image Pythons", "ok", text)


async def names() -> Check:
    """Whether programs of this machine find web functions by name.

    Browsers and curl know by themselves that all names under localhost are this machine.
    """
    name = "a-web-function.localhost"
    try:
        await asyncio.get_running_loop().getaddrinfo(name, 80)
    except OSError:
        return Check(
            "web names",
            "warning",
            "browsers and curl find names under localhost, other programs of this machine do not",
            "install the package libnss-myhostname, or point the setting web_domain at a domain "
            "whose names lead to this machine",
        )
    return Check("web names", "ok", "names under localhost lead to this machine")


def gpus(found: Inventory, runtime: str) -> list[Check]:
    """Which GPUs containers can be given, and what is in the way of others."""
    cards = "; ".join(f"{gpu.index}: {gpu.name} as {gpu.type}" for gpu in found.gpus)
    checks = [Check("GPUs", "ok", cards or "none")] if cards or not found.problems else []
    checks += [Check("GPUs", "warning", each.found, each.fix) for each in found.problems]
    if (runtime or DEFAULT) not in RUN_HOOKS:
        hooks = [hook for device in found.devices.values() for hook in device.hooks]
        if names := missed(hooks):
            checks.append(
                Check(
                    "GPUs",
                    "warning",
                    f"{runtime or DEFAULT} does not run these hooks of the CDI specification: "
                    f"{', '.join(names)}",
                    "choose runc or crun with the setting default_runtime, if programs need them",
                )
            )
    return checks


async def container(home: Path, runtime: str) -> Check:
    """Start a container as a function's is started and let it end."""
    name = runtime or DEFAULT
    try:
        check_default(name)
        async with trial_folder(home) as folder:
            seconds, code = await run_container(folder, runtime)
    except (RuntimeUnavailableError, ContainerStartError, CgroupError, ExecError) as error:
        return Check("container", "failed", f"{name}: {error}", _fix(error))
    except OSError as error:
        return Check("container", "failed", f"{name}: {error}", _fix(error))
    if code != 0:
        found = f"{name}: {PROGRAM} ended with {code}"
        return Check("container", "failed", found, "look at dmesg for what the kernel refused")
    found = f"{name} ran one with limits and a network in {seconds * 1000:.0f} ms"
    return Check("container", "ok", found)


def _fix(error: Exception) -> str:
    if isinstance(error, RuntimeUnavailableError):
        return "see the message; other runtimes: setting default_runtime"
    return (
        "the kernel refused a step of starting a container: run on a machine or VM of its own "
        "rather than inside a restricted container, with the home on ext4, xfs or btrfs"
    )


def main() -> None:
    """Print the checks as a JSON array."""
    home, *runtime = sys.argv[1:]
    settings = load(Path(home).absolute())
    checks = asyncio.run(
        probe(
            settings.home,
            *runtime,
            options=gpu_options(settings),
            caches_bytes_max=settings.caches_bytes_max,
        )
    )
    sys.stdout.buffer.write(msgspec.json.encode(checks) + b"\n")


if __name__ == "__main__":
    main()
