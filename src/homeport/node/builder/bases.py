"""Bases without a registry: Debian bootstrapped from its mirror, CPython copied into it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from homeport import pythons
from homeport.kernel import ids
from homeport.kernel.resources import Limits
from homeport.link.messages import ImageConfig
from homeport.node.builder.debian import (
    BUILD_PACKAGES,
    SUITES,
    Suite,
    bootstrap,
    host_mirrors,
    python_packages,
)
from homeport.node.builder.errors import BuildError
from homeport.node.builder.flights import Emit
from homeport.node.builder.reference import (
    DebianReference,
    PythonReference,
    Reference,
    UvReference,
    parse_reference,
    unmakeable,
)
from homeport.node.builder.registry import Access, Registry, RegistryUnreachableError
from homeport.node.builder.running import entry, run_in_container
from homeport.node.builder.steps import BuildTools
from homeport.node.builder.uvimage import PROGRAMS, UvPrograms, UvWheels
from homeport.node.layers import LayerMetadata, LayerStore, layer_key
from homeport.node.runtime.port import ContainerSpec, ContainerStartError, RuntimeUnavailableError
from homeport.pythons import HostPython

PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_REVISION = "1"
"""Raise it when bases are made differently, so that old ones are not used any more."""
_HOST_PYTHONS_AGE_S = 60.0
_LOCK_RETRY_S = 0.2
"""Another process' bootstrap takes half a minute and cannot wake us."""

_SETUP = """
set -e
ldconfig
python3 -I - <<'EOF'
import importlib, pathlib, sys, sysconfig
needed = {"_ssl", "_hashlib", "_sqlite3", "_ctypes", "_lzma", "_bz2", "zlib"}
folder = pathlib.Path(sysconfig.get_path("stdlib"), "lib-dynload")
missing = []
for name in sorted({file.name.split(".")[0] for file in folder.glob("*.so")}):
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name}: {error}")
        if name in needed:
            print(f"this CPython does not work in the base image: {error}")
            sys.exit(1)
if missing:
    print("without " + ", ".join(line.split(":")[0] for line in missing))
EOF
python3 -I -m ensurepip --default-pip >/dev/null 2>&1
python3 -I -m compileall -q -j 2 "$(python3 -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" >/dev/null || true
"""

_DEBIAN_SETUP = """
set -e
pip=$(echo /usr/share/python-wheels/pip-*.whl)
python3 "$pip/pip" install --quiet --no-index --no-deps --root-user-action ignore "$pip"
"""


@dataclass(frozen=True, slots=True)
class Base:
    """An image made here: its layers, lowest first, and its configuration."""

    layers: list[str]
    config: ImageConfig


class Bases:
    """Makes the bases that FROM names, once a machine.

    ``cache`` is a store shared by all installations of this user; what is made goes there first
    and is linked into the node's own store.
    """

    def __init__(self, tools: BuildTools, cache: LayerStore, registry: Registry) -> None:
        self._registry = registry
        self._tools = tools
        self._cache = cache
        self._wheels = UvWheels(cache.root / "uv", tools.clock)
        self._found: tuple[float, list[HostPython]] = (float("-inf"), [])

    async def get(self, reference: str, emit: Emit, access: Access | None = None) -> Base:
        """The base called ``reference``. Raises ``BuildError`` saying what can be had here.

        A registry is asked where there is a way to ask one; images with well-known names are made
        here if none answers.
        """
        access = access or Access()
        parsed = parse_reference(reference)
        if parsed is not None and not (access.kind or self._registry.has_mirror(reference)):
            return await self._made(reference, parsed, emit)
        try:
            pulled = await self._registry.get(reference, access, emit)
            return Base(pulled.layers, pulled.config)
        except RegistryUnreachableError as error:
            if parsed is None:
                raise BuildError(_not_here(reference, error.message)) from error
            emit([entry(f"   {error.message}; {reference} is made here\n")])
        return await self._made(reference, parsed, emit)

    async def _made(self, reference: str, parsed: Reference, emit: Emit) -> Base:
        if isinstance(parsed, UvReference):
            return await self._uv(parsed, emit)
        if isinstance(parsed, DebianReference):
            return await self._plain_debian(parsed, emit)
        return await self._python(reference, parsed, emit)

    async def _plain_debian(self, wanted: DebianReference, emit: Emit) -> Base:
        if wanted.instead_of:
            name = wanted.suite.name
            emit([entry(f"   Debian {name} stands in for {wanted.instead_of}\n")])
        key = await self._debian(wanted.suite, (), "plain", emit)
        return Base([key], ImageConfig(env={"PATH": PATH}, cmd=["bash"]))

    # ── uv ──────────────────────────────────────────────────────────────────────────────────

    async def _uv(self, wanted: UvReference, emit: Emit) -> Base:
        programs = await self._wheels.get(wanted.version)
        if wanted.base is None:
            base, folder, config = Base([], ImageConfig()), "", ImageConfig(entrypoint=["/uv"])
        elif isinstance(wanted.base, PythonReference):
            base = await self._python(f"python:{wanted.base.version}", wanted.base, emit)
            folder, config = "usr/local/bin", base.config
        else:
            base = await self._plain_debian(wanted.base, emit)
            folder, config = "usr/local/bin", base.config
        parent = base.layers[-1] if base.layers else ""
        key = layer_key("uv", _REVISION, parent, programs.version, folder)

        async def make(upper: Path, emit: Emit) -> None:
            emit([entry(f"   uv {programs.version} from the package index\n")])
            await asyncio.to_thread(_place_uv, programs, upper / folder)

        await self._ensure(key, parent, f"uv {programs.version}", make, emit)
        return Base([*base.layers, key], config)

    # ── Debian ──────────────────────────────────────────────────────────────────────────────

    def _debian_key(self, suite: Suite, kind: str) -> str:
        return layer_key("debian", _REVISION, suite.name, kind, self._tools.host.ca_digest)

    async def _debian(
        self, suite: Suite, packages: Sequence[str], kind: str, emit: Emit, *, python: str = ""
    ) -> str:
        host = self._tools.host
        key = self._debian_key(suite, kind)

        async def make(upper: Path, emit: Emit) -> None:
            emit([entry(f"=> Bootstrapping Debian {suite.name}, once on this machine\n")])
            mirrors = await asyncio.to_thread(host_mirrors)
            await bootstrap(suite, packages, upper, mirrors, host, emit)
            if python:
                await asyncio.to_thread(_finish_debian_python, upper, python)

        return await self._ensure(key, "", f"debian {suite.name} ({kind})", make, emit)

    # ── CPython ─────────────────────────────────────────────────────────────────────────────

    async def _python(self, reference: str, wanted: PythonReference, emit: Emit) -> Base:
        refused: list[str] = []
        for python in await self._host_pythons():
            if python.minor == wanted.minor:
                base = await self._try_copy(python, wanted, refused, emit)
                if base is not None:
                    return base
        own = next((s for s in _from(wanted.suite) if wanted.minor in s.pythons), None)
        if own is not None and (own is wanted.suite or self._has_own(own, wanted.minor)):
            return await self._debian_python(own, wanted, emit)
        downloaded = await self._downloaded(wanted, refused, emit)
        if downloaded is not None:
            return downloaded
        if own is not None:
            return await self._debian_python(own, wanted, emit)
        raise BuildError(await self._no_python(reference, wanted, refused))

    async def _downloaded(
        self, wanted: PythonReference, refused: list[str], emit: Emit
    ) -> Base | None:
        emit([entry(f"   looking for CPython {wanted.minor} among uv's downloads\n")])
        python = await pythons.download_python(wanted.minor, self._cache.root / "pythons")
        return await self._try_copy(python, wanted, refused, emit) if python is not None else None

    def _has_own(self, suite: Suite, minor: str) -> bool:
        key = self._debian_key(suite, f"python{minor}")
        return self._tools.layers.has(key) or self._cache.has(key)

    async def _host_pythons(self) -> list[HostPython]:
        """What the host has, looked up at most once a minute."""
        checked_at, found = self._found
        now = self._tools.clock.monotonic()
        if now - checked_at > _HOST_PYTHONS_AGE_S:
            found = await pythons.host_pythons()
            self._found = (now, found)
        return found

    async def _try_copy(
        self, python: HostPython, wanted: PythonReference, refused: list[str], emit: Emit
    ) -> Base | None:
        suite = next((s for s in _from(wanted.suite) if s.glibc >= python.glibc), None)
        if suite is None:
            needs = ".".join(map(str, python.glibc))
            refused.append(f"{python.prefix} needs a C library of {needs}")
            return None
        _note_differences(wanted, python.version, suite, f"{python.prefix}", emit)
        try:
            layers = await self._copied_python(python, suite, emit)
        except BuildError as error:
            refused.append(f"{python.prefix}: {error.message}")
            emit([entry(f"   {python.prefix} is of no use here: {error.message}\n")])
            return None
        return Base(layers, _python_config(python.version))

    async def _copied_python(self, python: HostPython, suite: Suite, emit: Emit) -> list[str]:
        bottom = await self._debian(suite, BUILD_PACKAGES, "build", emit)
        files = layer_key("cpython", _REVISION, bottom, str(python.prefix), python.version)
        ready = layer_key("cpython-setup", _REVISION, files)

        async def copy(upper: Path, emit: Emit) -> None:
            emit([entry(f"=> Copying CPython {python.version} from {python.prefix}\n")])
            await asyncio.to_thread(pythons.copy_python, python, upper)

        async def set_up(upper: Path, emit: Emit) -> None:
            await self._run_setup([bottom, files], _SETUP, upper, emit)

        await self._ensure(files, bottom, f"CPython {python.version}", copy, emit)
        await self._ensure(ready, files, f"CPython {python.version} set up", set_up, emit)
        return [bottom, files, ready]

    async def _debian_python(self, suite: Suite, wanted: PythonReference, emit: Emit) -> Base:
        minor = wanted.minor
        packages = [*BUILD_PACKAGES, *python_packages(minor)]
        bottom = await self._debian(suite, packages, f"python{minor}", emit, python=minor)
        ready = layer_key("debian-python-setup", _REVISION, bottom)
        version = _installed_version(self._tools.layers.path(bottom), minor)
        _note_differences(wanted, version, suite, f"Debian {suite.name}", emit)

        async def set_up(upper: Path, emit: Emit) -> None:
            await self._run_setup([bottom], _DEBIAN_SETUP, upper, emit)

        await self._ensure(ready, bottom, f"Debian's Python {version} set up", set_up, emit)
        return Base([bottom, ready], _python_config(version))

    async def _run_setup(self, layers: list[str], script: str, upper: Path, emit: Emit) -> None:
        spec = ContainerSpec(
            id=ids.new("bd"),
            layers=tuple(self._tools.layers.path(key) for key in layers),
            upper=upper,
            command=("/bin/sh", "-c", script),
            env={"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"},
            limits=Limits(),
            network="none",
        )
        try:
            done = await run_in_container(self._tools.runtime, spec, emit, keep_upper=True)
        except (ContainerStartError, RuntimeUnavailableError) as error:
            raise BuildError(f"a container to set Python up did not start: {error}") from error
        if done.exit.returncode != 0:
            raise BuildError(done.tail or f"its set-up returned {done.exit.returncode}")

    async def _no_python(self, reference: str, wanted: PythonReference, refused: list[str]) -> str:
        host = {python.minor for python in await self._host_pythons()}
        debian = {minor for suite in SUITES for minor in suite.pythons}
        known = sorted(
            (minor for minor in host | debian if minor.startswith("3.")),
            key=lambda minor: int(minor.split(".")[1]),
        )
        why = f" ({'; '.join(refused)})" if refused else ""
        return (
            f"no CPython {wanted.minor} can be had on this node for {reference}{why}. "
            f"Here there are: {', '.join(known)}. "
            f"To add it: uv python install {wanted.minor} (or pyenv install {wanted.minor}) "
            "as the user who runs Homeport, on the node"
        )

    # ── making a layer once a machine ───────────────────────────────────────────────────────

    async def _ensure(
        self,
        key: str,
        parent: str,
        what: str,
        make: Callable[[Path, Emit], Awaitable[None]],
        emit: Emit,
    ) -> str:
        if self._tools.layers.has(key):
            return key

        async def work(emit: Emit) -> None:
            if not self._cache.has(key):
                async with _machine_lock(self._cache.root / f"{key}.lock"):
                    if not self._cache.has(key):
                        await self._make(key, parent, what, make, emit)
            await self._tools.layers.adopt(self._cache, key)

        await self._tools.flights.run(key, work, emit)
        return key

    async def _make(
        self,
        key: str,
        parent: str,
        what: str,
        make: Callable[[Path, Emit], Awaitable[None]],
        emit: Emit,
    ) -> None:
        directory = self._cache.new_work()
        upper = directory / "upper"
        try:
            await make(upper, emit)
            now = self._tools.clock.now()
            metadata = LayerMetadata(parent=parent, instruction=what, created_at=now)
            await self._cache.commit(upper, key, metadata)
        finally:
            await self._cache.discard(directory)


def _not_here(reference: str, why: str) -> str:
    hint = unmakeable(reference)
    return (
        f"{reference} would have to come from a container registry, and {why}. "
        f"{hint + '. ' if hint else ''}Images that need no registry: "
        "python:3.X[-slim][-bookworm|-trixie], debian:<release>[-slim], ubuntu:<release> (as the "
        "nearest Debian) and ghcr.io/astral-sh/uv:<version>"
    )


def default_cache_directory() -> Path:
    """``$HOMEPORT_BASE_CACHE`` or ``~/.cache/homeport/bases``."""
    named = os.environ.get("HOMEPORT_BASE_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "homeport" / "bases"


def _from(suite: Suite) -> Sequence[Suite]:
    """``suite`` and the newer ones."""
    return SUITES[SUITES.index(suite) :]


def _python_config(version: str) -> ImageConfig:
    env = {"PATH": PATH, "LANG": "C.UTF-8", "PYTHON_VERSION": version}
    return ImageConfig(env=env, cmd=["python3"])


def _note_differences(
    wanted: PythonReference, version: str, suite: Suite, origin: str, emit: Emit
) -> None:
    text = f"   Python {version} from {origin} on Debian {suite.name}"
    if wanted.version.count(".") == 2 and wanted.version != version:
        text += f"; stands in for {wanted.version}"
    if suite is not wanted.suite:
        text += f"; {wanted.suite.name} cannot run it"
    emit([entry(text + "\n")])


def _place_uv(programs: UvPrograms, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in PROGRAMS:
        if (programs.folder / name).is_file():
            shutil.copy2(programs.folder / name, folder / name)
            (folder / name).chmod(0o755)


def _finish_debian_python(root: Path, minor: str) -> None:
    """Make Debian's Python the image's own: plain names, pip allowed to install."""
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    binaries = root / "usr" / "local" / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    for name in ("python", "python3", f"python{minor}"):
        (binaries / name).symlink_to(f"/usr/bin/python{minor}")


def _installed_version(root: Path, minor: str) -> str:
    """The full version of Debian's Python in the tree, from dpkg's records."""
    package = f"Package: python{minor}\n"
    for block in (root / "var/lib/dpkg/status").read_text(errors="replace").split("\n\n"):
        if block.startswith(package):
            for line in block.splitlines():
                if line.startswith("Version: "):
                    return line.removeprefix("Version: ").split("-")[0].split("~")[0]
    return minor


@asynccontextmanager
async def _machine_lock(path: Path) -> AsyncGenerator[None]:
    """Exclusive among the processes of this machine."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_RETRY_S)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
