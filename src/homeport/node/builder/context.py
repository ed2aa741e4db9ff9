"""Where COPY, ADD and bind mounts take files from: the build context, or the tree of an image."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from homeport.link.messages import BuildFile
from homeport.node.builder.merged import MergedView
from homeport.node.layers import layer_key


@dataclass(frozen=True, slots=True)
class ContextFile:
    """One entry: a file on disk (``path``) or inline (``data``), a directory, a symbolic link.

    ``mode`` holds permission bits; ``owner`` is (uid, gid), ``None`` where the source has none.
    """

    mode: int
    path: Path | None = None
    data: bytes = b""
    link: str | None = None
    is_dir: bool = False
    owner: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What one source of a COPY means: entries by the name they get under the destination."""

    files: dict[str, ContextFile]
    is_tree: bool
    """The source is a directory (its contents are copied), so the destination is one too."""


class Source(Protocol):
    """A tree of files, by name relative to its root."""

    @property
    def digest(self) -> str:
        """Names the content of all of it."""
        ...

    def entries(self) -> dict[str, ContextFile]:
        """Everything in it, parents before children. May read the disk: call it in a thread."""
        ...

    def resolve(self, path: str) -> str:
        """``path`` with symbolic links followed inside the tree, without a leading slash."""
        ...

    def below(self, path: str) -> dict[str, ContextFile]:
        """What ``path`` (resolved, no pattern) and everything under it is, by full name."""
        ...


class BuildContext:
    """Files from a mount's tree on disk and inline files."""

    def __init__(self, root: Path | None, root_digest: str, inline: Sequence[BuildFile]) -> None:
        self._root = root
        self._inline = inline
        self._files: dict[str, ContextFile] | None = None
        self.digest = layer_key(
            root_digest,
            *(
                part
                for file in sorted(inline, key=lambda item: item.name)
                for part in (file.name, file.data, str(file.mode))
            ),
        )

    def entries(self) -> dict[str, ContextFile]:
        if self._files is None:
            files: dict[str, ContextFile] = {}
            if self._root is not None:
                files.update(_walk_disk(self._root))
            for file in self._inline:
                name = file.name.lstrip("/")
                for parent in _parents(name):
                    files.setdefault(parent, ContextFile(0o755, is_dir=True))
                files[name] = ContextFile(file.mode & 0o7777, None, file.data)
            self._files = dict(sorted(files.items()))
        return self._files

    def resolve(self, path: str) -> str:
        return "/".join(_clean(path))

    def below(self, path: str) -> dict[str, ContextFile]:
        return _below(self.entries(), path)


class TreeSource:
    """The tree of an image or an earlier stage; ``digest`` is what its layers are named by."""

    def __init__(self, view: MergedView, digest: str) -> None:
        self._view = view
        self.digest = digest

    def entries(self) -> dict[str, ContextFile]:
        return {name: _entry(path, info) for name, path, info in self._view.walk("/")}

    def resolve(self, path: str) -> str:
        return self._view.resolve("/" + path).lstrip("/")

    def below(self, path: str) -> dict[str, ContextFile]:
        if not path:
            return self.entries()
        host = self._view.find("/" + path, follow=False)
        if host is None:
            return {}
        info = os.lstat(host)
        found = {path: _entry(host, info)}
        if stat.S_ISDIR(info.st_mode):
            for name, child, child_info in self._view.walk("/" + path):
                found[f"{path}/{name}"] = _entry(child, child_info)
        return found


def select(
    source: Source, pattern: str, *, parents: bool = False, exclude: Sequence[str] = ()
) -> Selection:
    """What ``pattern`` (a name, a directory or a glob) means in ``source``; empty if nothing.

    With ``parents`` names keep the directories of the pattern (those behind ``/./``, if it has
    one); ``exclude`` are patterns of what is left out. Reads the tree: call it in a thread.
    """
    parts = _clean(pattern)
    if ".." in parts:
        return Selection({}, False)
    keep = _kept_parents(pattern) if parents else None
    chosen: dict[str, ContextFile] = {}
    is_tree = not parts
    if not parts:
        found: Iterable[tuple[str, dict[str, ContextFile]]] = [("", source.entries())]
    elif _has_magic(parts):
        found = _matching(source, parts)
    else:
        resolved = source.resolve("/".join(parts))
        if not resolved:  # a link to the root
            found, is_tree = [("", source.entries())], True
        else:
            found = [(resolved, source.below(resolved))]
    for top, entries in found:
        name = parts[-1] if parts and not _has_magic(parts) else top.rsplit("/", 1)[-1]
        for full, file in entries.items():
            inner = full[len(top) :].lstrip("/")
            if keep is not None:
                target = "/".join([*top.split("/")[keep:], inner]).strip("/") if top else inner
            elif inner or file.is_dir:
                target = inner
                is_tree = True
            else:
                target = name
            if target and not _is_excluded(inner or name, exclude):
                chosen[target] = file
    if keep is not None:
        _add_parents(source, parts, keep, chosen)
    return Selection(chosen, is_tree or keep is not None)


def content_digest(selections: Iterable[Selection]) -> str:
    """Names what the selections hold: names, modes, owners, links and contents."""
    digest = hashlib.sha256()

    def add(*texts: object) -> None:
        for text in texts:
            data = text if isinstance(text, bytes) else str(text).encode()
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)

    for selection in selections:
        add("selection", selection.is_tree, len(selection.files))
        for name, file in sorted(selection.files.items()):
            kind = "directory" if file.is_dir else "link" if file.link is not None else "file"
            add(name, kind, file.mode, file.owner or "", file.link or "")
            if kind == "file":
                add(_file_digest(file))
    return digest.hexdigest()


def _file_digest(file: ContextFile) -> bytes:
    if file.path is None:
        return hashlib.sha256(file.data).digest()
    info = file.path.lstat()
    if not stat.S_ISREG(info.st_mode):
        return f"{stat.S_IFMT(info.st_mode)}:{info.st_rdev}".encode()
    with file.path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _walk_disk(root: Path) -> Iterator[tuple[str, ContextFile]]:
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(folder, name)
            info = path.lstat()
            yield path.relative_to(root).as_posix(), _without_owner(_entry(path, info))


def _entry(path: Path, info: os.stat_result) -> ContextFile:
    owner = (info.st_uid, info.st_gid)
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        return ContextFile(0o777, link=os.readlink(path), owner=owner)
    if stat.S_ISDIR(info.st_mode):
        return ContextFile(mode, is_dir=True, owner=owner)
    return ContextFile(mode, path, owner=owner)


def _without_owner(file: ContextFile) -> ContextFile:
    """As part of a build context, which knows neither owners nor the modes of directories."""
    mode = 0o755 if file.is_dir else file.mode
    return ContextFile(mode, file.path, file.data, file.link, file.is_dir)


def _clean(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _below(entries: dict[str, ContextFile], path: str) -> dict[str, ContextFile]:
    prefix = path + "/"
    return {name: file for name, file in entries.items() if name == path or name.startswith(prefix)}


def _has_magic(parts: Sequence[str]) -> bool:
    return any(character in part for part in parts for character in "*?[\\")


def _matching(source: Source, parts: list[str]) -> Iterator[tuple[str, dict[str, ContextFile]]]:
    """Each entry that the pattern names, with everything under it."""
    matches = [_matcher(part) for part in parts]
    for name in source.entries():
        names = name.split("/")
        if len(names) == len(parts) and all(
            match(text) for match, text in zip(matches, names, strict=True)
        ):
            yield name, source.below(name)


def _matcher(part: str) -> Callable[[str], bool]:
    """One segment of a pattern: ``*``, ``?``, ``[a-z]``, ``[^a-z]``, a backslash quotes."""
    translated = ""
    position = 0
    while position < len(part):
        character = part[position]
        if character == "\\" and position + 1 < len(part):
            translated += f"[{part[position + 1]}]"
            position += 2
            continue
        translated += "[!" if part[position : position + 2] == "[^" else character
        position += 2 if part[position : position + 2] == "[^" else 1
    return lambda text: fnmatch.fnmatchcase(text, translated)


def _kept_parents(pattern: str) -> int:
    """How many leading segments ``--parents`` drops: those before ``/./``."""
    before, mark, _ = pattern.partition("/./")
    return len(_clean(before)) if mark else 0


def _add_parents(
    source: Source, parts: list[str], keep: int, chosen: dict[str, ContextFile]
) -> None:
    """The directories above the chosen entries, as they are in the source."""
    prefix = "/".join(parts[:keep])
    entries = source.entries()
    for name in list(chosen):
        for parent in _parents(name):
            full = f"{prefix}/{parent}".strip("/")
            chosen.setdefault(parent, entries.get(full) or ContextFile(0o755, is_dir=True))


def _is_excluded(name: str, patterns: Sequence[str]) -> bool:
    for pattern in patterns:
        parts = _clean(pattern)
        if parts[:1] == ["**"]:
            tail = parts[1:]
            names = name.split("/")
            for start in range(len(names)):
                if _starts_with(names[start:], tail):
                    return True
        elif _starts_with(name.split("/"), parts):
            return True
    return False


def _starts_with(names: list[str], parts: list[str]) -> bool:
    return (
        bool(parts)
        and len(names) >= len(parts)
        and all(_matcher(part)(text) for part, text in zip(parts, names, strict=False))
    )
