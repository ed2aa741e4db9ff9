"""CPython installations of the host that can be copied into an image."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uv import find_uv_bin

_GLIBC = re.compile(rb"GLIBC_2\.(\d+)")
_TEST_DIRECTORIES = {"test", "tests", "idle_test", "__pycache__", "site-packages"}
_NORMALISED_BYTES_MAX = 256 * 1024 * 1024
_NOT_RELOCATABLE = ("/usr", "/", "/bin")
_DOWNLOAD_TIMEOUT_S = 300.0
_PROBE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class HostPython:
    """A CPython whose tree works at another prefix. ``version`` is ``3.11.7``.

    ``glibc`` is the newest C library version its binaries ask for.
    """

    prefix: Path
    version: str
    glibc: tuple[int, int]

    @property
    def minor(self) -> str:
        """``3.11``."""
        return minor_of(self.version)

    @property
    def is_movable(self) -> bool:
        """Whether it is a build that brings the libraries it needs (those that uv installs)."""
        return "cpython-" in self.prefix.name


def minor_of(version: str) -> str:
    """``3.11`` of ``3.11.7``."""
    return ".".join(version.split(".")[:2])


async def host_pythons(environ: Mapping[str, str] = os.environ) -> list[HostPython]:
    """Every such CPython of this machine, the newest of each series first."""
    prefixes = [*_pyenv_prefixes(environ), *_uv_prefixes(environ), *await _uv_listed(environ)]
    found: dict[Path, HostPython] = {}
    for prefix in prefixes:
        if prefix not in found:
            python = await asyncio.to_thread(inspect_prefix, prefix)
            if python is not None:
                found[prefix] = python
    return sorted(found.values(), key=lambda python: _number(python.version), reverse=True)


async def download_python(minor: str, directory: Path) -> HostPython | None:
    """Let uv install CPython ``minor`` under ``directory``; ``None`` if that cannot be had.

    Respects ``UV_PYTHON_DOWNLOADS`` and ``UV_PYTHON_INSTALL_MIRROR``.
    """
    if os.environ.get("UV_PYTHON_DOWNLOADS", "").lower() in ("never", "false"):
        return None
    environment = {
        "UV_HTTP_TIMEOUT": "10",
        "UV_HTTP_RETRIES": "1",
        **os.environ,
        "UV_PYTHON_INSTALL_DIR": str(directory),
    }
    arguments = ["python", "install", "--no-bin", "--no-config", minor]
    code, _ = await _uv(arguments, environment, _DOWNLOAD_TIMEOUT_S)
    if code != 0:
        return None
    return await asyncio.to_thread(_find_in, directory, minor)


def _find_in(directory: Path, minor: str) -> HostPython | None:
    for prefix in sorted(directory.glob("cpython-*"), reverse=True):
        python = inspect_prefix(prefix.resolve())
        if python is not None and python.minor == minor:
            return python
    return None


def inspect_prefix(prefix: Path) -> HostPython | None:
    """What is installed at ``prefix``, or ``None`` if it is no CPython that can be copied."""
    if str(prefix) in _NOT_RELOCATABLE or (prefix / "conda-meta").exists():
        return None
    if (prefix / "pyvenv.cfg").exists():
        return None
    for header in sorted(prefix.glob("include/python3.*/patchlevel.h")):
        match = re.search(r'#define\s+PY_VERSION\s+"([0-9][^"]*)"', header.read_text())
        if match is None or header.parent.name.endswith("t"):
            continue
        version = match.group(1).rstrip("+")
        minor = minor_of(version)
        binary = prefix / "bin" / f"python{minor}"
        library = prefix / "lib" / f"python{minor}"
        if binary.is_file() and (library / "os.py").is_file():
            return HostPython(prefix, version, _needed_glibc(prefix, binary, library))
    return None


def copy_python(python: HostPython, root: Path) -> None:
    """Put ``python`` into the tree ``root`` at ``/usr/local``, as if installed there.

    Left out: packages, tests, bytecode, static libraries, other programs of the prefix.
    """
    target = root / "usr" / "local"
    minor = python.minor
    (target / "bin").mkdir(parents=True)
    (target / "lib").mkdir()
    for name in (f"python{minor}", f"python{minor}-config", f"pydoc{minor}", f"idle{minor}"):
        source = python.prefix / "bin" / name
        if source.is_file():
            shutil.copy2(source, target / "bin" / name)
    _link(target / "bin", f"python{minor}", "python3", "python")
    _link(target / "bin", f"python{minor}-config", "python3-config", "python-config")
    _link(target / "bin", f"pydoc{minor}", "pydoc3", "pydoc")
    _link(target / "bin", f"idle{minor}", "idle3", "idle")
    shutil.copytree(
        python.prefix / "include" / f"python{minor}", target / "include" / f"python{minor}"
    )
    for source in _library_entries(python.prefix / "lib"):
        destination = target / "lib" / source.name
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, destination, symlinks=True)
        else:
            shutil.copy2(source, destination, follow_symlinks=False)
    library = target / "lib" / f"python{minor}"
    shutil.copytree(
        python.prefix / "lib" / f"python{minor}", library, symlinks=True, ignore=_ignore
    )
    (library / "site-packages").mkdir()
    (library / "EXTERNALLY-MANAGED").unlink(missing_ok=True)
    for path, _, names in os.walk(target):
        for name in names:
            _normalise(Path(path, name), python.prefix)


def add_pip(prefix: Path, minor: str) -> None:
    """Put pip into the CPython at ``prefix``, from the wheel it bundles, without running it."""
    library = prefix / "lib" / f"python{minor}"
    wheel = next((library / "ensurepip" / "_bundled").glob("pip-*.whl"), None)
    if wheel is None:
        return
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(library / "site-packages")
    for name in ("pip", "pip3", f"pip{minor}"):
        script = prefix / "bin" / name
        script.write_text(
            "#!/usr/local/bin/python3\nimport sys\n"
            "from pip._internal.cli.main import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)


def _library_entries(lib: Path) -> list[Path]:
    wanted = ("libpython*.so*", "pkgconfig", "libtcl*", "libtk*", "tcl*", "tk*", "itcl*", "thread*")
    return sorted({path for pattern in wanted for path in lib.glob(pattern)})


def _ignore(folder: str, names: list[str]) -> set[str]:
    ignored = {name for name in names if name in _TEST_DIRECTORIES or name.endswith((".a", ".pyc"))}
    if Path(folder).name == "lib-dynload":
        ignored |= {name for name in names if name.startswith(("_test", "_ctypes_test", "xx"))}
    return ignored


def _normalise(path: Path, prefix: Path) -> None:
    """Owner root, and the old prefix replaced in the text files that name it."""
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        return
    old = os.fsencode(prefix)
    text_file = (
        path.parent.name in ("bin", "pkgconfig")
        or path.name.startswith("_sysconfigdata")
        or path.parent.name.startswith("config-")
    )
    program = path.parent.name in ("bin", "lib-dynload") or path.name.startswith("libpython")
    if not (text_file or program) or info.st_size > _NORMALISED_BYTES_MAX:
        return
    data = path.read_bytes()
    if data.startswith(b"\x7fELF"):
        path.write_bytes(_moved_program(data, old + b"/lib"))
    elif text_file and old in data:
        path.write_bytes(data.replace(old, b"/usr/local"))


def _moved_program(data: bytes, old: bytes) -> bytes:
    """The program with ``old`` as the place where it looks for its libraries replaced.

    The entry of the string table keeps its length, so nothing else in the file moves.
    """
    new = b"/usr/local/lib"
    if len(old) < len(new):
        return data
    return data.replace(b"\0" + old + b"\0", b"\0" + new.ljust(len(old), b"\0") + b"\0")


def _link(folder: Path, target: str, *names: str) -> None:
    if (folder / target).exists():
        for name in names:
            (folder / name).symlink_to(target)


def _needed_glibc(prefix: Path, binary: Path, library: Path) -> tuple[int, int]:
    files: list[Path] = [
        binary,
        *prefix.glob("lib/libpython*.so.*"),
        *library.glob("lib-dynload/*.so"),
    ]
    newest = 17
    for file in files:
        newest = max([newest, *(int(number) for number in _GLIBC.findall(file.read_bytes()))])
    return 2, newest


def _pyenv_prefixes(environ: Mapping[str, str]) -> list[Path]:
    root = Path(environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return sorted(path.resolve() for path in (root / "versions").glob("3.*") if path.is_dir())


def _uv_prefixes(environ: Mapping[str, str]) -> list[Path]:
    data = Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    root = Path(environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    return sorted({path.resolve() for path in root.glob("cpython-3*") if path.is_dir()})


async def _uv_listed(environ: Mapping[str, str]) -> list[Path]:
    arguments = ["python", "list", "--only-installed", "--no-config", "--output-format", "json"]
    code, output = await _uv(arguments, environ, _PROBE_TIMEOUT_S)
    if code != 0:
        return []
    try:
        rows: list[dict[str, Any]] = json.loads(output)
    except json.JSONDecodeError:
        return []
    paths = (row["path"] for row in rows if row.get("implementation") == "cpython")
    return list(_prefixes_of(paths))


def _prefixes_of(paths: Iterable[str]) -> Iterable[Path]:
    for text in paths:
        path = Path(text).resolve()
        if path.parent.name == "bin":
            yield path.parent.parent


async def _uv(
    arguments: list[str], environ: Mapping[str, str], timeout_s: float
) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        find_uv_bin(),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=dict(environ),
        cwd="/",
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError:
        return -1, b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
