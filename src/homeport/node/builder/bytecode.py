"""Bytecode of packages that uv installs: each source is compiled once a machine, not once a build.

Compiling takes most of the time of ``uv pip install --compile-bytecode``, and what comes out depends
on the interpreter, the source and its path only. A step whose whole command is such an installation
therefore runs without the flag, and the files that uv would have made are put beside the sources
afterwards: those that are known from what is kept, the others compiled.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import posixpath
import re
import shlex
import stat
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from homeport.kernel import ids
from homeport.node.builder.archives import OPAQUE_XATTR
from homeport.node.builder.flights import Emit
from homeport.node.builder.merged import MergedView, is_whiteout
from homeport.node.builder.running import entry, run_in_container
from homeport.node.layers import LayerStore
from homeport.node.runtime.port import Bind, ContainerSpec, Runtime

log = structlog.get_logger(__name__)

_FLAG = "--compile-bytecode"
_SHELLS = (("/bin/sh", "-c"), ("/bin/bash", "-c"))
_PYTHON = re.compile(r"\$\(command -v python3?\)")
_PUNCTUATION = ";&|<>()`"
_ELSEWHERE = ("-t", "--target", "--prefix", "--root", "--python-platform", "--no-compile-bytecode")
"""Options after which the interpreter that runs the packages is not the one beside them."""
_OWN_WISHES = (
    "UV_COMPILE_BYTECODE",
    "PYC_INVALIDATION_MODE",
    "PYTHONPYCACHEPREFIX",
    "PYTHONOPTIMIZE",
)
"""Variables that change what is compiled, or to where."""
_PACKAGES = re.compile(
    r"(?:^|/)lib(?:64)?/(?P<python>(?:python|pypy)3\.\d+t?)/(?:site|dist)-packages$"
)
_SOURCES = "/var/cache/homeport/sources"
_COMPILED = "/var/cache/homeport/compiled"
_HEADER = struct.Struct("<III")
"""What follows the magic number of a ``.pyc``: flags, the source's time (Unix seconds) and size."""
_BYTECODE = re.compile(rb"(?P<magic>.{2}\r\n)(?P<tag>[a-z0-9_-]{1,32})\x00", re.DOTALL)
"""How a kept file begins; what follows is the code, marshalled. One without is of no Python."""

_COMPILE = f"""
import importlib.machinery, importlib.util, json, marshal, os, sys

def compiled(path):
    with open("{_SOURCES}" + path, "rb") as file:
        source = file.read()
    code = importlib.machinery.SourceFileLoader("", path).source_to_code(source, path)
    tag = sys.implementation.cache_tag.encode()
    return importlib.util.MAGIC_NUMBER + tag + b"\\0" + marshal.dumps(code)

import warnings
warnings.simplefilter("ignore")
sys.setrecursionlimit(10_000)
with open("{_COMPILED}/wanted.json") as file:
    wanted = json.load(file)
children = []
for worker in range(int(sys.argv[1])):
    child = os.fork()
    if child:
        children.append(child)
        continue
    for key, path in wanted[worker :: int(sys.argv[1])]:
        try:
            data = compiled(path)
        except (SyntaxError, ValueError, RecursionError, UnicodeError):
            data = b""
        with open("{_COMPILED}/" + key, "wb") as file:
            file.write(data)
    os._exit(0)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


@dataclass(frozen=True, slots=True)
class _Source:
    """A Python file of the new layer: where it is, there and in the container."""

    path: str
    host: Path


@dataclass(frozen=True, slots=True)
class _Interpreter:
    """A Python of the image, and the layers that it consists of."""

    program: str
    layers: tuple[Path, ...]
    is_shared: bool
    """Whether those layers are others' too, so that what it compiles can be kept."""

    @property
    def libraries(self) -> str:
        """Where its own library is: the linker's list may be in a later layer."""
        return posixpath.join(posixpath.dirname(posixpath.dirname(self.program)), "lib")


def without_compiling(argv: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...] | None:
    """The command of a RUN without uv's compilation; ``None`` if it is not just that.

    Only a command that does nothing but install is one: whatever followed it could look.
    """
    if len(argv) != 3 or tuple(argv[:2]) not in _SHELLS or env.keys() & set(_OWN_WISHES):
        return None
    text = argv[2]
    words = _simple_command(text)
    if not words or posixpath.basename(words[0]) != "uv" or words.count(_FLAG) != 1:
        return None
    if words[1:3] != ["pip", "install"] and words[1:2] != ["sync"]:
        return None
    if any(word.partition("=")[0] in _ELSEWHERE for word in words):
        return None
    less, count = re.subn(rf"(?<=\s){_FLAG}(?=\s|$)", "", text)
    return (*argv[:2], less) if count == 1 else None


def _simple_command(text: str) -> list[str] | None:
    """The words of a shell command that is one command only."""
    if "\n" in text:
        return None
    lexer = shlex.shlex(_PYTHON.sub("python", text), posix=True, punctuation_chars=_PUNCTUATION)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        return None
    return None if any(set(_PUNCTUATION) & set(word[:1]) for word in words) else words


class InstalledBytecode:
    """What was compiled on this machine, under ``directory``, by interpreter, path and source."""

    def __init__(self, directory: Path, runtime: Runtime, layers: LayerStore) -> None:
        self._directory = directory
        self._runtime = runtime
        self._layers = layers
        self._keeping = threading.Lock()

    async def complete(
        self, parents: Sequence[Path], upper: Path, spec: ContainerSpec, emit: Emit
    ) -> None:
        """Have bytecode for all packages in ``upper``, a finished installation on ``parents``.

        ``spec`` is the container that installed them. Raises what starting a container raises.
        """
        path = spec.env.get("PATH", "")
        total = fresh = 0
        for packages, python in await asyncio.to_thread(lambda: list(_packages(upper))):
            interpreter = await asyncio.to_thread(
                _interpreter, parents, upper, packages, python, path
            )
            if interpreter is None:
                emit([entry(f"   no {python} beside {packages}: its bytecode is not made\n")])
                continue
            keys = await asyncio.to_thread(_keys, interpreter, upper, packages)
            missing = await asyncio.to_thread(_place, self._directory, keys, upper)
            left = await self._compile(interpreter, missing, upper, spec)
            if left and interpreter.is_shared:  # it needs more than its own layers
                alone = _Interpreter(interpreter.program, (*parents, upper), False)
                left = await self._compile(alone, left, upper, spec)
            if left:
                emit([entry(f"   {len(left)} files below {packages} could not be compiled\n")])
            total, fresh = total + len(keys), fresh + len(missing)
        if total:
            emit([entry(f"   bytecode of {total} files, {fresh} of them compiled now\n")])

    async def _compile(
        self,
        interpreter: _Interpreter,
        missing: dict[str, _Source],
        upper: Path,
        spec: ContainerSpec,
    ) -> dict[str, _Source]:
        """Compile and place; returns what the interpreter left undone."""
        if not missing:
            return {}
        work = self._layers.new_work()
        try:
            compiled = work / "compiled"
            compiled.mkdir()
            wanted = [(key, source.path) for key, source in missing.items()]
            (compiled / "wanted.json").write_bytes(msgspec.json.encode(wanted))
            program = replace(
                spec,
                id=ids.new("bd"),
                layers=interpreter.layers,
                upper=work / "upper",
                command=(interpreter.program, "-ISB", "-c", _COMPILE, str(os.cpu_count() or 1)),
                env={"LC_ALL": "C.UTF-8", "LD_LIBRARY_PATH": interpreter.libraries},
                workdir="/",
                binds=(Bind(upper, _SOURCES), Bind(compiled, _COMPILED, read_only=False)),
                tmpfs=(),
                overlays=(),
                network="none",
            )
            done = await run_in_container(
                self._runtime, program, lambda entries: None, keep_upper=False
            )
            if done.exit.returncode != 0:
                log.info("not everything was compiled", code=done.exit.returncode, said=done.tail)
            left = await asyncio.to_thread(_place, compiled, missing, upper)
            if interpreter.is_shared:
                await asyncio.to_thread(self._keep, compiled, missing)
            return left
        finally:
            await self._layers.discard(work)

    def _keep(self, compiled: Path, missing: Mapping[str, _Source]) -> None:
        """Take over what was compiled."""
        with self._keeping:
            self._directory.mkdir(parents=True, exist_ok=True)
            for key in missing:
                file = compiled / key
                if file.is_file() and not file.is_symlink():
                    file.replace(self._directory / key)


def _packages(upper: Path) -> Iterator[tuple[str, str]]:
    """(directory, Python) of each place for packages that is in the layer."""
    for path, folders, _ in os.walk(upper):
        place = "/" + os.path.relpath(path, upper)
        found = _PACKAGES.search(place)
        if found:
            folders.clear()
            yield place, found["python"]


def _interpreter(
    parents: Sequence[Path], upper: Path, packages: str, python: str, path: str
) -> _Interpreter | None:
    """Who runs the packages in directory ``packages``: the one beside it or on the ``path``.

    It is given the layers up to its own only: nothing that an image adds has a say in what is kept
    for all images.
    """
    view = MergedView([*parents, upper])
    prefix = packages.partition(f"/lib/{python}/")[0].partition(f"/lib64/{python}/")[0]
    candidates = [f"{prefix}/bin/{name}" for name in (python, "python3", "python")]
    candidates += [posixpath.join(folder, python) for folder in path.split(":") if folder]
    for candidate in candidates:
        program = view.resolve(candidate)
        host = view.find(program)
        if host is None or not host.is_file():
            continue
        stack = [*parents, upper]
        number = next(n for n, layer in enumerate(stack) if host.is_relative_to(layer))
        return _Interpreter(program, tuple(stack[: number + 1]), number < len(parents))
    return None


def _keys(interpreter: _Interpreter, upper: Path, packages: str) -> dict[str, _Source]:
    """The sources of the layer below ``packages``, by what decides their bytecode."""
    who = hashlib.sha256()
    for text in (interpreter.program, *(layer.name for layer in interpreter.layers)):
        who.update(text.encode() + b"\0")
    found: dict[str, _Source] = {}
    for folder, folders, names in os.walk(upper / packages.lstrip("/")):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            host = Path(folder, name)
            if not name.endswith(".py") or not stat.S_ISREG(host.lstat().st_mode):
                continue
            path = "/" + host.relative_to(upper).as_posix()
            key = who.copy()
            key.update(path.encode(errors="surrogateescape") + b"\0")
            key.update(host.read_bytes())
            found[key.hexdigest()] = _Source(path, host)
    return found


def _place(kept: Path, sources: Mapping[str, _Source], upper: Path) -> dict[str, _Source]:
    """Put bytecode beside those sources for which ``kept`` has some; returns the others."""
    missing: dict[str, _Source] = {}
    folders: dict[Path, bool] = {}
    for key, source in sources.items():
        data = _read(kept / key)
        if data is None:
            missing[key] = source
            continue
        bytecode = _BYTECODE.match(data)
        if bytecode is None:  # its source is no Python, or another's
            continue
        folder = source.host.parent / "__pycache__"
        if folder not in folders:
            folders[folder] = _have_directory(folder)
        if folders[folder]:
            name = f"{source.host.stem}.{bytecode['tag'].decode()}.pyc"
            _write(folder, name, source.host.lstat(), bytecode["magic"], data[bytecode.end() :])
    return missing


def _read(file: Path) -> bytes | None:
    """A file that a container may have made; ``None`` if it is not there."""
    try:
        opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(opened, "rb") as reader:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            return None
        os.utime(opened)
        return reader.read()


def _have_directory(folder: Path) -> bool:
    """Have the directory for bytecode in the layer; whether it could be had."""
    try:
        info = folder.lstat()
    except FileNotFoundError:
        folder.mkdir()
        folder.chmod(0o755)
        return True
    if is_whiteout(info):  # that of the lower layers was deleted, and stays so
        folder.unlink()
        folder.mkdir()
        folder.chmod(0o755)
        os.setxattr(folder, OPAQUE_XATTR, b"y")
        return True
    return stat.S_ISDIR(info.st_mode)


def _write(folder: Path, name: str, source: os.stat_result, magic: bytes, code: bytes) -> None:
    """A ``.pyc`` as Python itself writes it: valid for the source of this time and size."""
    temporary = folder / f".{name}"
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    header = _HEADER.pack(0, int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF)
    with open(os.open(temporary, flags, 0o600), "wb") as file:
        file.write(magic + header + code)
        os.fchmod(file.fileno(), (source.st_mode | stat.S_IWUSR) & 0o666)
    temporary.replace(folder / name)
