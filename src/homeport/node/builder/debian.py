"""Debian base trees, bootstrapped with mmdebstrap from the mirror the host itself uses."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from homeport.node.builder.errors import BuildError
from homeport.node.builder.flights import Emit
from homeport.node.builder.hostenv import HostBuildEnvironment
from homeport.node.builder.running import entry
from homeport.node.layers import remove_tree

DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY_MIRROR = "http://deb.debian.org/debian-security"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BOOTSTRAP_TIMEOUT_S = 1_800.0
"""A bootstrap takes half a minute with a near mirror; this bounds a mirror that hangs."""

_CONFINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--mount-proc", "--kill-child"),
)
"""mmdebstrap mounts the host's ``/proc``, ``/sys`` and devices into the tree that it makes. Were
they left there when the node is killed, who clears up would delete in them. So its mounts and its
processes are seen and kept by nobody else, and end with the node."""
_NOISE = ("W: Download is performed unsandboxed", "rehash: warning", "I: running --customize-hook")
BUILD_PACKAGES = ("build-essential", "gcc", "gfortran")
"""What ``Image.debian_slim`` installs by itself: much cheaper while bootstrapping than after."""
_COMMON_PACKAGES = ("ca-certificates", "debconf", "netbase", "tzdata", "zlib1g")


@dataclass(frozen=True, slots=True)
class Suite:
    """A Debian release: its C library, its own Python, what a CPython from elsewhere links to."""

    name: str
    number: str
    glibc: tuple[int, int]
    pythons: tuple[str, ...]
    libraries: tuple[str, ...]
    has_security: bool = True


_LIBRARIES = [
    "libbz2-1.0",
    "libcrypt1",
    "libdb5.3",
    "libexpat1",
    "libffi8",
    "libgdbm6",
    "libgdbm-compat4",
    "liblzma5",
    "libncursesw6",
    "libnsl2",
    "libreadline8",
    "libsqlite3-0",
    "libssl3",
    "libtirpc3",
    "libuuid1",
]
_LIBRARIES_T64 = [
    f"{name}t64"
    if name in ("libdb5.3", "libgdbm6", "libgdbm-compat4", "libreadline8", "libssl3", "libtirpc3")
    else name
    for name in _LIBRARIES
]
_LIBRARIES_FORKY = [name for name in _LIBRARIES_T64 if name != "libnsl2"]

SUITES = (
    Suite(
        "bullseye",
        "11",
        (2, 31),
        ("3.9",),
        tuple(
            {"libffi8": "libffi7", "libssl3": "libssl1.1"}.get(name, name) for name in _LIBRARIES
        ),
    ),
    Suite("bookworm", "12", (2, 36), ("3.11",), tuple(_LIBRARIES)),
    Suite("trixie", "13", (2, 41), ("3.13",), tuple(_LIBRARIES_T64)),
    Suite("forky", "14", (2, 43), ("3.14", "3.15"), tuple(_LIBRARIES_FORKY), has_security=False),
    Suite("sid", "", (2, 43), ("3.14", "3.15"), tuple(_LIBRARIES_FORKY), has_security=False),
)
STABLE = "trixie"
_ALIASES = {
    "stable": STABLE,
    "latest": STABLE,
    "oldstable": "bookworm",
    "oldoldstable": "bullseye",
    "testing": "forky",
    "unstable": "sid",
}


def find_suite(name: str) -> Suite | None:
    """The suite called ``name``: a code name, a number (``12``, ``12.5``) or ``stable`` etc."""
    name = _ALIASES.get(name, name)
    number = name.partition(".")[0]
    return next((s for s in SUITES if s.name == name or (s.number and s.number == number)), None)


def python_packages(minor: str) -> tuple[str, ...]:
    """The packages of Debian's own CPython ``minor``; ``-venv`` brings the wheel of pip."""
    return (f"python{minor}", f"python{minor}-dev", f"python{minor}-venv")


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Where Debian comes from."""

    main: str = DEFAULT_MIRROR
    security: str = DEFAULT_SECURITY_MIRROR
    apt_options: tuple[str, ...] = field(default=())

    def sources(self, suite: Suite, signed_by: str) -> str:
        """The ``debian.sources`` file for ``suite``."""
        suites = [suite.name]
        if suite.has_security:
            suites.append(f"{suite.name}-updates")
        text = _stanza(self.main, suites, signed_by)
        if suite.has_security:
            text += "\n" + _stanza(self.security, [f"{suite.name}-security"], signed_by)
        return text


def _stanza(uri: str, suites: Iterable[str], signed_by: str) -> str:
    return (
        f"Types: deb\nURIs: {uri}\nSuites: {' '.join(suites)}\nComponents: main\n"
        f"Signed-By: {signed_by}\n"
    )


def host_mirrors(etc_apt: Path = Path("/etc/apt")) -> Mirrors:
    """The Debian mirrors in the host's apt sources, else Debian's own."""
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    main, security = "", ""
    for file in files:
        if file.suffix not in (".list", ".sources") or not file.is_file():
            continue
        for uri in _uris(file):
            path = uri.rstrip("/")
            if path.endswith("/debian-security"):
                security = security or path
            elif path.endswith("/debian"):
                main = main or path
    return Mirrors(main or DEFAULT_MIRROR, security or DEFAULT_SECURITY_MIRROR, _apt_options())


def _uris(file: Path) -> list[str]:
    found: list[str] = []
    for line in file.read_text(errors="replace").splitlines():
        line = line.split("#", 1)[0].strip()
        if line.lower().startswith("uris:"):
            found.extend(line.split()[1:])
        elif match := re.match(r"deb\s+(?:\[[^\]]*\]\s*)?(\S+)", line):
            found.append(match.group(1))
    return [uri for uri in found if uri.startswith(("http://", "https://"))]


def _apt_options() -> tuple[str, ...]:
    """The host's apt settings that decide whether a mirror can be reached at all."""
    try:
        done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ()
    wanted = re.compile(r'^(Acquire::(?:https?::Proxy|Check-Valid-Until)) "(.+)";$')
    matches = (wanted.match(line) for line in done.stdout.splitlines())
    return tuple(f'{m.group(1)} "{m.group(2)}"' for m in matches if m)


async def ensure_mmdebstrap(emit: Emit) -> str:
    """The path of mmdebstrap, installed with apt if need be. Raises ``BuildError``."""
    path = shutil.which("mmdebstrap")
    if path is None and os.geteuid() == 0 and shutil.which("apt-get"):
        emit([entry("=> Installing mmdebstrap with apt-get, once on this machine\n")])
        install = ["apt-get", "install", "-y", "mmdebstrap"]
        try:
            await _run(install, emit, timeout_s=600)
        except BuildError:  # its package lists may be missing or old
            await _run(["apt-get", "update"], emit, timeout_s=600)
            await _run(install, emit, timeout_s=600)
        path = shutil.which("mmdebstrap")
    if path is None:
        raise BuildError(
            "Debian based images need mmdebstrap on the node: install it "
            "(apt-get install mmdebstrap, or your distribution's package) and run again"
        )
    if not await asyncio.to_thread(KEYRING.exists):
        raise BuildError(
            f"the node has no {KEYRING}: install the package debian-archive-keyring and run again"
        )
    return path


async def bootstrap(
    suite: Suite,
    packages: Iterable[str],
    target: Path,
    mirrors: Mirrors,
    host: HostBuildEnvironment,
    emit: Emit,
) -> None:
    """Make a minimal Debian tree at ``target`` (must not exist). Raises ``BuildError``."""
    tool = await ensure_mmdebstrap(emit)
    aside = target.parent / "bootstrap"
    aside.mkdir(mode=0o755)
    (aside / "host.sources").write_text(mirrors.sources(suite, str(KEYRING)))
    for number, pem in enumerate(host.private_cas):
        (aside / f"host-{number}.crt").write_bytes(pem)
    command = [
        tool,
        "--variant=minbase",
        f"--include={','.join([*_COMMON_PACKAGES, *suite.libraries, *packages])}",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/info/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=force-unsafe-io",
        *(f"--aptopt={option}" for option in mirrors.apt_options),
    ]
    if host.private_cas:
        command.append(f"--customize-hook={_ca_hook(aside)}")
    as_root = os.geteuid() == 0
    output = target if as_root else aside / "tree.tar"
    command += ["--mode=root"] if as_root else ["--mode=unshare"]
    command += [suite.name, str(output), str(aside / "host.sources")]
    around = _CONFINED if as_root else ()
    await _run(command, emit, timeout_s=BOOTSTRAP_TIMEOUT_S, around=around)
    if not as_root:
        await asyncio.to_thread(target.mkdir)
        await _run(
            [
                "tar",
                "-x",
                "--no-same-owner",
                "--exclude=./dev/*",
                "-C",
                str(target),
                "-f",
                str(output),
            ],
            emit,
            timeout_s=600,
        )
    await asyncio.to_thread(_finish_tree, target, suite, mirrors)
    await asyncio.to_thread(remove_tree, aside)


def _ca_hook(aside: Path) -> str:
    return (
        'mkdir -p "$1/usr/local/share/ca-certificates" && '
        f'cp {aside}/host-*.crt "$1/usr/local/share/ca-certificates/" && '
        'chroot "$1" update-ca-certificates >/dev/null'
    )


def _finish_tree(root: Path, suite: Suite, mirrors: Mirrors) -> None:
    """What a container image of Debian has beyond the packages."""
    remove_tree(root / "dev")
    (root / "dev").mkdir(mode=0o755)
    apt = root / "etc" / "apt"
    (apt / "sources.list").unlink(missing_ok=True)
    for old in (apt / "sources.list.d").glob("*"):
        old.unlink()
    (apt / "sources.list.d" / "debian.sources").write_text(mirrors.sources(suite, str(KEYRING)))
    (apt / "apt.conf.d" / "docker-clean").write_text(
        "// A layer must not keep downloaded packages.\n"
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb '
        '/var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };\n'
        'Dir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n'
        'Acquire::Languages "none";\nApt::AutoRemove::SuggestsImportant "false";\n'
    )
    for name in ("resolv.conf", "hosts", "hostname"):
        file = root / "etc" / name
        if file.is_symlink() or file.exists():
            file.unlink()
        file.touch(mode=0o644)


async def _run(
    command: list[str], emit: Emit, *, timeout_s: float, around: Sequence[str] = ()
) -> None:
    """Run a tool on the host, its output into the log; ended on cancellation.

    ``around`` are words before its own that do not change what it does.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    process = await asyncio.create_subprocess_exec(
        *around,
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
    )
    tail: list[str] = []
    try:
        async with asyncio.timeout(timeout_s):
            assert process.stdout is not None
            async for line in process.stdout:
                text = line.decode(errors="replace")
                tail = [*tail[-14:], text.rstrip()]
                if not text.startswith(_NOISE):
                    emit([entry(f"   {text}")])
            code = await process.wait()
    except TimeoutError:
        raise BuildError(f"{command[0]} did not end within {timeout_s:.0f} s") from None
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
    if code != 0:
        raise BuildError(f"{Path(command[0]).name} failed on the node:\n" + "\n".join(tail))
