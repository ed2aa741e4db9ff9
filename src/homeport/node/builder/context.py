"""The build context: the files COPY and ADD can name."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from homeport.link.messages import BuildFile
from homeport.node.layers import layer_key


@dataclass(frozen=True, slots=True)
class ContextFile:
    """One file: on disk or inline. ``mode`` holds permission bits."""

    mode: int
    path: Path | None = None
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Selection:
    """What one source of a COPY means: files by the name they get under the destination."""

    files: dict[str, ContextFile]
    is_tree: bool
    """The source is a directory (its contents are copied), so the destination is one too."""


class BuildContext:
    """Files from a mount's tree on disk and inline files, by name relative to the context root.

    ``digest`` names the content of all of it.
    """

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

    def select(self, source: str) -> Selection:
        """The files that ``source`` (a name, a directory or a pattern) means; empty if none.

        Reads the directory tree: call it in a thread.
        """
        files = self._load()
        parts = [part for part in source.split("/") if part not in ("", ".")]
        if ".." in parts:
            return Selection({}, False)
        if not parts:
            return Selection(dict(files), True)
        exact = files.get("/".join(parts))
        if exact is not None:
            return Selection({parts[-1]: exact}, False)
        chosen: dict[str, ContextFile] = {}
        is_tree = False
        for name, file in files.items():
            names = name.split("/")
            if not _matches(names, parts):
                continue
            inner = names[len(parts) :]
            is_tree = is_tree or bool(inner)
            chosen["/".join(inner) if inner else names[-1]] = file
        return Selection(chosen, is_tree)

    def _load(self) -> dict[str, ContextFile]:
        if self._files is None:
            files: dict[str, ContextFile] = {}
            if self._root is not None:
                for folder, _, names in os.walk(self._root):
                    for name in names:
                        path = Path(folder, name)
                        relative = path.relative_to(self._root).as_posix()
                        files[relative] = ContextFile(path.stat().st_mode & 0o7777, path)
            for file in self._inline:
                files[file.name.lstrip("/")] = ContextFile(file.mode & 0o7777, None, file.data)
            self._files = dict(sorted(files.items()))
        return self._files


def _matches(names: list[str], pattern: list[str]) -> bool:
    return len(names) >= len(pattern) and all(
        fnmatch.fnmatchcase(name, part) for name, part in zip(names, pattern, strict=False)
    )
