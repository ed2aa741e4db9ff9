"""``RUN --mount``: what it says, and the host files and directories it stands for."""

from __future__ import annotations

import asyncio
import csv
import os
import posixpath
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from homeport.node.builder.context import Selection, content_digest
from homeport.node.builder.copying import CopyPlan, LayerWriter
from homeport.node.builder.errors import BuildError
from homeport.node.builder.merged import MergedView
from homeport.node.caches import MOUNTS, Caches, touch
from homeport.node.layers import layer_key
from homeport.node.runtime.port import Bind

_KEYS = {
    "bind": {"target", "source", "from", "readonly", "readwrite"},
    "cache": {"target", "id", "sharing", "from", "source", "mode", "uid", "gid", "readonly"},
    "tmpfs": {"target", "size"},
    "secret": {"id", "target", "required", "mode", "uid", "gid", "env"},
    "ssh": {"id", "target", "required", "mode", "uid", "gid"},
}
_ALIASES = {
    "dst": "target",
    "destination": "target",
    "src": "source",
    "ro": "readonly",
    "rw": "readwrite",
}
_SHARING = ("shared", "private", "locked")


@dataclass(frozen=True, slots=True)
class RunMount:
    """One ``--mount``. ``target`` is absolute but for a secret that is only a variable."""

    type: str
    target: str
    source: str = ""
    image: str = ""
    """``from=``: a stage or an image."""
    id: str = ""
    read_only: bool = False
    required: bool = False
    mode: int | None = None
    owner: tuple[int, int] = (0, 0)
    sharing: str = "shared"
    env: str = ""


def parse_mount(text: str, workdir: str, expand: Callable[[str], str]) -> RunMount:
    """Read the value of a ``--mount`` flag. Raises ``BuildError`` saying what is wrong with it."""
    fields = _fields(text)
    kind = fields.pop("type", "bind")
    if kind not in _KEYS:
        raise BuildError(f"--mount has no type {kind!r}; there are: {', '.join(_KEYS)}")
    for key in fields:
        if key not in _KEYS[kind]:
            raise BuildError(f"--mount=type={kind} has no option {key!r}")
    values = {key: expand(value) for key, value in fields.items()}
    target = values.get("target", "")
    identity = values.get("id", "")
    if kind == "secret":
        identity = identity or posixpath.basename(target)
        if not identity:
            raise BuildError("--mount=type=secret needs an id")
        if not target and "env" not in values:
            target = f"/run/secrets/{identity}"
    elif kind == "ssh":
        target = target or "/run/buildkit/ssh_agent.0"
    elif not target:
        raise BuildError(f"--mount=type={kind} needs a target")
    if target:
        target = posixpath.normpath(posixpath.join(workdir or "/", target))
        target = "/" + target.lstrip("/")
    if kind in ("bind", "cache", "tmpfs") and target == "/":
        raise BuildError("--mount cannot replace the root directory")
    sharing = values.get("sharing", "shared")
    if sharing not in _SHARING:
        raise BuildError(f"--mount: sharing is one of {', '.join(_SHARING)}, not {sharing!r}")
    return RunMount(
        type=kind,
        target=target,
        source=values.get("source", ""),
        image=values.get("from", ""),
        id=identity or target,
        read_only=_flag(values, "readonly", kind == "bind" and not _flag(values, "readwrite")),
        required=_flag(values, "required"),
        mode=_octal(values["mode"]) if "mode" in values else None,
        owner=(_number(values, "uid"), _number(values, "gid")),
        sharing=sharing,
        env=values.get("env", ""),
    )


def _fields(text: str) -> dict[str, str]:
    try:
        row: list[str] = next(csv.reader([text], strict=True), list[str]())
    except csv.Error as error:
        raise BuildError(f"--mount={text} cannot be read: {error}") from None
    fields: dict[str, str] = {}
    for part in row:
        key, equals, value = part.partition("=")
        key = key.strip().lower()
        fields[_ALIASES.get(key, key)] = value if equals else "true"
    return fields


def _flag(values: Mapping[str, str], key: str, default: bool = False) -> bool:
    text = values.get(key)
    if text is None:
        return default
    if text.lower() not in ("true", "false", "1", "0"):
        raise BuildError(f"--mount: {key} is true or false, not {text!r}")
    return text.lower() in ("true", "1")


def _number(values: Mapping[str, str], key: str) -> int:
    text = values.get(key, "0")
    if not text.isdecimal() or int(text) > 2**31:
        raise BuildError(f"--mount: {key} is a number, not {text!r}")
    return int(text)


def _octal(text: str) -> int:
    try:
        return int(text, 8) & 0o7777
    except ValueError:
        raise BuildError(f"--mount: mode is an octal number, not {text!r}") from None


@dataclass(frozen=True, slots=True)
class PreparedMounts:
    """What a RUN gets beside its layers."""

    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])


class CacheDirectories:
    """The directories behind ``--mount=type=cache``, kept on the node from build to build."""

    def __init__(self, kept: Caches) -> None:
        self._kept = kept
        self._root = kept.directory(MOUNTS)
        self._locks: dict[str, asyncio.Lock] = {}
        self._in_use: dict[str, int] = {}

    @asynccontextmanager
    async def use(self, mount: RunMount) -> AsyncGenerator[Path]:
        """The directory, for the length of one RUN, shared as the mount says."""
        name = layer_key("cache-mount", mount.id)
        if mount.sharing == "private" and self._in_use.get(name):
            number = next(n for n in range(1, 10_000) if not self._in_use.get(f"{name}.{n}"))
            name = f"{name}.{number}"
        async with AsyncExitStack() as stack:
            if mount.sharing == "locked":
                await stack.enter_async_context(self._locks.setdefault(name, asyncio.Lock()))
            self._in_use[name] = self._in_use.get(name, 0) + 1
            try:
                await stack.enter_async_context(self._kept.use(MOUNTS, key=name))
                yield await asyncio.to_thread(self._make, self._root / name, mount)
            finally:
                self._in_use[name] -= 1
                if not self._in_use[name]:
                    del self._in_use[name]

    def _make(self, path: Path, mount: RunMount) -> Path:
        if not path.exists():
            path.mkdir(parents=True)
            if os.geteuid() == 0:
                os.chown(path, *mount.owner)
            path.chmod(0o755 if mount.mode is None else mount.mode)
        touch(path)
        return path


class MountPreparer:
    """Turns the mounts of one RUN into host paths below ``directory``."""

    def __init__(
        self, directory: Path, caches: CacheDirectories, secrets: Mapping[str, str]
    ) -> None:
        self._directory = directory
        self._caches = caches
        self._secrets = secrets

    @asynccontextmanager
    async def prepare(
        self, mounts: list[tuple[RunMount, Selection | None]]
    ) -> AsyncGenerator[PreparedMounts]:
        """The mounts with, for ``bind``, what they select. Raises ``BuildError``."""
        binds: list[Bind] = []
        tmpfs: list[str] = []
        env: dict[str, str] = {}
        async with AsyncExitStack() as stack:
            for number, (mount, selection) in enumerate(mounts):
                place = self._directory / f"mount{number}"
                if mount.type == "cache":
                    path = await stack.enter_async_context(self._caches.use(mount))
                    binds.append(Bind(path, mount.target, read_only=mount.read_only))
                elif mount.type == "tmpfs":
                    tmpfs.append(mount.target)
                elif mount.type == "secret":
                    self._secret(mount, place, binds, env)
                elif mount.type == "ssh":
                    if mount.required:
                        raise BuildError(
                            "--mount=type=ssh: builds here have no SSH agent; use a Secret with a "
                            "token, or copy what you need into the build context"
                        )
                elif selection is not None:
                    path = await asyncio.to_thread(_materialise, selection, mount, place)
                    binds.append(Bind(path, mount.target, read_only=mount.read_only))
            yield PreparedMounts(tuple(binds), tuple(tmpfs), env)

    def _secret(self, mount: RunMount, place: Path, binds: list[Bind], env: dict[str, str]) -> None:
        value = self._secrets.get(mount.id)
        if value is None:
            if mount.required:
                raise BuildError(
                    f"the secret {mount.id} is required and not given: pass a Secret that has "
                    f"the key {mount.id} (secrets=[…] of the image method)"
                )
            return
        if mount.env:
            env[mount.env] = value
        if mount.target:
            place.mkdir(parents=True)
            file = place / "secret"
            file.write_text(value)
            if os.geteuid() == 0:
                os.chown(file, *mount.owner)
            file.chmod(0o400 if mount.mode is None else mount.mode)
            binds.append(Bind(file, mount.target))


def mounts_digest(
    mounts: list[tuple[RunMount, Selection | None]], secrets: Mapping[str, str]
) -> str:
    """What of the mounts decides a RUN's result: contents of binds and secrets, not of caches."""
    parts: list[str] = []
    for mount, selection in mounts:
        content = content_digest([selection]) if selection is not None else ""
        secret = layer_key(secrets.get(mount.id, "")) if mount.type == "secret" else ""
        parts += [mount.type, mount.target, mount.source, mount.id, mount.env, content, secret]
    return layer_key(*parts) if parts else ""


def _materialise(selection: Selection, mount: RunMount, place: Path) -> Path:
    """A host path that holds exactly the selection (a directory, or its single file)."""
    if not selection.files and not selection.is_tree:
        where = f" in {mount.image}" if mount.image else " in the build context"
        raise BuildError(f"--mount: {mount.source or '/'} is not{where}")
    view = MergedView([])
    writer = LayerWriter(view, place, share=mount.read_only)
    writer.copy(CopyPlan((selection,), "/tree" if selection.is_tree else "/tree/"))
    if selection.is_tree:
        return place / "tree"
    return place / "tree" / next(iter(selection.files))
