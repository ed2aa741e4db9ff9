"""The mounts that clients expect of the platform: the client package itself and its dependencies.

Both are made once from published packages, with uv, and stored as ordinary mount files.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

import structlog
from uv import find_uv_bin

from homeport import pythons
from homeport.kernel.errors import NotFoundError
from homeport.link.messages import ManifestFile
from homeport.storage.contents import ContentStore

log = structlog.get_logger(__name__)

CLIENT_ROOT: Final = "/pkg"
DEPENDENCIES_ROOT: Final = "/__modal/deps"
_CLIENT_PACKAGES: Final = ("modal", "modal_proto", "modal_version", "synchronicity")
_INSTALL_TIMEOUT_S: Final = 300.0
"""A few megabytes from the package index; beyond it the network is gone."""
_VERSION: Final = re.compile(r"^\d+(\.\d+)+([a-z.]+\d+)*$")
_BUILDER: Final = re.compile(r"^(\d{4}\.\d{2}|PREVIEW)$")
_PYTHON: Final = re.compile(r"^3\.\d{1,2}$")
_STANDALONE: Final = re.compile(r"^(\d{8})\.(3\.\d{1,2}\.\d{1,3})(t?)-gnu$")
_WITH_PYTHON_LINK: Final = 20241008
"""From this release on the builds have ``bin/python``; for older ones clients link it themselves."""
_PIN: Final = re.compile(r"==([0-9][0-9.]*)(?=[ ;\n]|$)")
_ANY_PIN: Final = re.compile(r"==[^ ;\n]+")
_SYNCHRONICITY: Final = re.compile(r"^synchronicity\b[^;]*")
_PLATFORMS: Final = ("manylinux_2_17", "manylinux_2_28")
"""The first one's wheels run in every image with glibc; some packages only have the second."""
_SITECUSTOMIZE: Final = f'''"""Lets the client find its dependencies, after everything the image itself has."""

import sys

if "{DEPENDENCIES_ROOT}" not in sys.path:
    sys.path.append("{DEPENDENCIES_ROOT}")
'''


class InstallError(Exception):
    """uv could not install; the message is its own."""


class GlobalMounts:
    """Makes the files of platform mounts and puts their contents into the file store."""

    def __init__(self, files: ContentStore, pythons: Path | None = None) -> None:
        self._files = files
        self._pythons = pythons or Path.home() / ".cache" / "homeport" / "bases" / "pythons"

    async def client_mount(self, version: str) -> list[ManifestFile]:
        """The client package ``version`` (as ``1.6.4``) under ``/pkg``.

        Raises ``NotFoundError`` if that version is neither installed here nor to be had.
        """
        if not _VERSION.match(version):
            raise NotFoundError(f"{version!r} is not a version of the modal client")
        installed = await asyncio.to_thread(_installed_client, version)
        if installed is not None:
            return await self._store(await asyncio.to_thread(_client_files, installed))
        with tempfile.TemporaryDirectory(prefix="homeport-client-") as directory:
            target = Path(directory)
            try:
                await _install_client(version, target)
            except InstallError as error:
                raise NotFoundError(
                    f"the files of modal client {version} could not be had from the package "
                    f"index, so its containers cannot start: {error}"
                ) from error
            return await self._store(await asyncio.to_thread(_client_files, target))

    async def deps_mount(self, builder_version: str, python_minor: str) -> list[ManifestFile]:
        """What the client needs in containers with Python ``python_minor``, as ``builder_version``
        pins it, under ``/__modal/deps``, and a ``sitecustomize`` that adds it to ``sys.path``.

        Raises ``NotFoundError`` if there is no such set or its packages cannot be had.
        """
        pins = _pins(builder_version)
        if not _PYTHON.match(python_minor):
            raise NotFoundError(f"{python_minor!r} is not a Python version such as 3.12")
        with tempfile.TemporaryDirectory(prefix="homeport-deps-") as directory:
            target = Path(directory, "deps")
            await _install_pins(pins, python_minor, target, builder_version)
            files = await asyncio.to_thread(
                _walk, target, DEPENDENCIES_ROOT, _top_level_without(target, "bin")
            )
            stored = await self._store(files)
        data = _SITECUSTOMIZE.encode()
        name = f"{CLIENT_ROOT}/sitecustomize.py"
        sha256 = await self._files.put_bytes(data)
        return [*stored, ManifestFile(name, sha256, 0o644, len(data))]

    async def python_mount(self, name: str) -> list[ManifestFile]:
        """A CPython below ``/python`` that works when copied to ``/usr/local``, with pip.

        ``name`` is release, version and C library as clients say it (``20230826.3.11.5-gnu``). A
        build of that series made to be moved is taken where it can be had, else one of this
        machine's. Raises ``NotFoundError``.
        """
        match = _STANDALONE.match(name)
        if match is None or match.group(3):
            raise NotFoundError(f"there is no CPython {name} that could be added to an image here")
        minor = pythons.minor_of(match.group(2))
        python = await self._movable_python(minor)
        if python is None:
            raise NotFoundError(
                f"no CPython {minor} can be had for add_python={minor!r}: this machine has none and "
                f"it cannot be downloaded. To add it: uv python install {minor}, as the user who "
                "runs Homeport"
            )
        with tempfile.TemporaryDirectory(prefix="homeport-python-") as directory:
            root = Path(directory)
            await asyncio.to_thread(pythons.copy_python, python, root)
            await asyncio.to_thread(pythons.add_pip, root / "usr" / "local", minor)
            if int(match.group(1)) < _WITH_PYTHON_LINK:
                (root / "usr" / "local" / "bin" / "python").unlink(missing_ok=True)
            return await self._store(
                await asyncio.to_thread(_walk, root / "usr", "", ("local",), "python")
            )

    async def _movable_python(self, minor: str) -> pythons.HostPython | None:
        found = [each for each in await pythons.host_pythons() if each.minor == minor]
        movable = next((each for each in found if each.is_movable), None)
        if movable is None:
            movable = await pythons.download_python(minor, self._pythons)
        return movable or next(iter(found), None)

    async def _store(self, files: dict[str, Path]) -> list[ManifestFile]:
        manifest: list[ManifestFile] = []
        for name, path in sorted(files.items()):
            sha256 = await self._files.put_file(path)
            status = path.stat()
            mode = 0o755 if status.st_mode & 0o100 else 0o644
            manifest.append(ManifestFile(name, sha256, mode, status.st_size))
        return manifest


def _installed_client(version: str) -> Path | None:
    """The site-packages that hold exactly this client version."""
    try:
        if importlib.metadata.version("modal") != version:
            return None
    except importlib.metadata.PackageNotFoundError:
        return None
    spec = importlib.util.find_spec("modal")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent.parent
    return root if all((root / name).is_dir() for name in _CLIENT_PACKAGES) else None


def _client_files(root: Path) -> dict[str, Path]:
    return _walk(root, CLIENT_ROOT, _CLIENT_PACKAGES)


def _top_level_without(root: Path, *names: str) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name not in names)


def _walk(root: Path, prefix: str, names: Iterable[str], instead: str = "") -> dict[str, Path]:
    """Files below ``root/<name>`` by their name below ``prefix``; no bytecode, no dot files.

    ``instead`` is what the one name is called there.
    """
    found: dict[str, Path] = {}
    for name in names:
        top = root / name
        paths = [top] if top.is_file() else sorted(top.rglob("*"))
        for path in paths:
            relative = PurePosixPath(path.relative_to(root).as_posix())
            hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                if instead:
                    relative = PurePosixPath(instead, *relative.parts[1:])
                found[f"{prefix}/{relative}"] = path
    return found


def _pins(builder_version: str) -> Path:
    """The pins file of that builder version in the installed client."""
    if _BUILDER.match(builder_version):
        spec = importlib.util.find_spec("modal")
        if spec is not None and spec.origin is not None:
            file = Path(spec.origin).parent / "builder" / f"{builder_version}.txt"
            if file.is_file():
                return file
    raise NotFoundError(
        f"there is no set of client dependencies for image builder version {builder_version!r}"
    )


async def _install_client(version: str, target: Path) -> None:
    into = ("--no-deps", "--target", str(target))
    await _uv("pip", "install", *into, f"modal=={version}")
    wanted = await asyncio.to_thread(_synchronicity_of, target)
    await _uv("pip", "install", *into, wanted)


def _synchronicity_of(target: Path) -> str:
    """What the client installed in ``target`` requires of synchronicity."""
    metadata = next(target.glob("modal-*.dist-info/METADATA"))
    requires = importlib.metadata.PathDistribution(metadata.parent).requires or []
    matches = (_SYNCHRONICITY.match(requirement) for requirement in requires)
    return next((match.group() for match in matches if match), "synchronicity").strip()


async def _install_pins(pins: Path, python_minor: str, target: Path, builder: str) -> None:
    """Install what ``pins`` lists. Of a version that was withdrawn, the nearest allowed one."""
    problem: InstallError | None = None
    for tag in _PLATFORMS:
        choose = (
            *("--no-deps", "--only-binary", ":all:", "--python-version", python_minor),
            *("--python-platform", f"{platform.machine()}-{tag}"),
        )
        for releases in (None, r"==\1.*", ""):
            try:
                chosen = pins
                if releases is not None:
                    chosen = await _relax(pins, releases, target.parent, choose)
                await asyncio.to_thread(shutil.rmtree, target, True)
                return await _uv(
                    "pip", "install", *choose, "--target", str(target), "-r", str(chosen)
                )
            except InstallError as error:
                problem = error
                if releases is None:  # a pinned release may have been replaced by its ".post1"
                    log.debug("client dependencies as pinned", builder=builder, error=str(error))
                else:
                    log.warning("client dependencies", builder=builder, error=str(error))
    raise NotFoundError(
        f"the dependencies of the modal client for Python {python_minor} (image builder {builder}) "
        f"could not be had from the package index: {problem}"
    )


async def _relax(pins: Path, releases: str, directory: Path, choose: tuple[str, ...]) -> Path:
    """The packages of ``pins`` at those versions where they exist, else at what ``releases``
    puts in place of a pin: the same release (``==1.2.*`` for 1.2), or nothing.
    """
    names, relaxed = directory / "names.in", directory / "relaxed.txt"
    text = await asyncio.to_thread(pins.read_text)
    await asyncio.to_thread(names.write_text, (_PIN if releases else _ANY_PIN).sub(releases, text))
    await asyncio.to_thread(relaxed.write_text, text)  # uv keeps to what its output file holds
    await _uv("pip", "compile", *choose, "-o", str(relaxed), str(names))
    return relaxed


async def _uv(command: str, subcommand: str, *arguments: str) -> None:
    """Run uv. Raises ``InstallError``."""
    process = await asyncio.create_subprocess_exec(
        find_uv_bin(),
        *(command, subcommand, "--quiet", "--python", sys.executable, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "UV_LINK_MODE": "copy"},
        cwd="/",
    )
    try:
        async with asyncio.timeout(_INSTALL_TIMEOUT_S):
            _, errors = await process.communicate()
    except TimeoutError:
        raise InstallError(f"uv did not end within {_INSTALL_TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        text = " ".join(errors.decode(errors="replace").split())
        raise InstallError(text[-600:] or f"uv returned {process.returncode}")
