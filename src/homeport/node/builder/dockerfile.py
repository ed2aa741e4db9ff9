"""Reading a Dockerfile into instructions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, cast

from dockerfile_parse import DockerfileParser

from homeport.node.builder.errors import BuildError

_CONTINUED = re.compile(r"\\\s*$")
_COMMENT = re.compile(r"^\s*#")
_TAKES_HEREDOC = re.compile(r"^\s*(RUN|COPY|ADD)\s", re.IGNORECASE)
_HEREDOC = re.compile(r"(?<!<)<<(-?)(['\"]?)([A-Za-z_][A-Za-z0-9_]*)\2")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S+))?(?:\s+|$)")


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A here-document of RUN or COPY. ``expand``: its variables are replaced (COPY only)."""

    name: str
    body: str
    expand: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: ``name`` in capitals, ``flags`` (``--chown=…``) apart from ``value``."""

    name: str
    value: str
    flags: dict[str, str]
    heredocs: tuple[Heredoc, ...] = field(default=())

    @property
    def text(self) -> str:
        """The instruction on one line, for logs and messages."""
        flags = "".join(f"--{k}={v} " if v else f"--{k} " for k, v in self.flags.items())
        return f"{self.name} {flags}{self.value}".strip()

    def json_words(self) -> list[str] | None:
        """The words of the JSON ("exec") form; ``None`` if it is not written so."""
        if not self.value.lstrip().startswith("["):
            return None
        try:
            words: Any = json.loads(self.value)
        except json.JSONDecodeError:
            return None
        if not isinstance(words, list):
            return None
        items = cast("list[object]", words)
        return [item for item in items if isinstance(item, str)] if _all_text(items) else None


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile in order, comments left out. Raises ``BuildError``."""
    lines, heredocs = _prepare(text.splitlines())
    content = ("\n".join(lines) + "\n").encode()
    structure = cast(
        "list[dict[str, Any]]", DockerfileParser(fileobj=cast("Any", BytesIO(content))).structure
    )
    instructions: list[Instruction] = []
    for item in structure:
        if item["instruction"] == "COMMENT":
            continue
        documents = heredocs.get(item["endline"], ())
        flags, value = _flags(item["instruction"], item["value"].strip())
        instructions.append(Instruction(item["instruction"], value, flags, documents))
    if not instructions:
        raise BuildError("the Dockerfile has no instructions")
    return instructions


def _prepare(lines: list[str]) -> tuple[list[str], dict[int, tuple[Heredoc, ...]]]:
    """Drop blank lines inside continued instructions and take here-documents out.

    Returns the lines left and the documents by the number of the line that names them.
    """
    kept: list[str] = []
    documents: dict[int, tuple[Heredoc, ...]] = {}
    logical = ""
    rest = iter(lines)
    for line in rest:
        if logical and (not line.strip() or _COMMENT.match(line)):
            continue
        kept.append(line)
        if not logical and _COMMENT.match(line):
            continue
        logical += line
        if _CONTINUED.search(line):
            continue
        if _TAKES_HEREDOC.match(logical):
            found = tuple(_read_heredocs(logical, rest))
            if found:
                documents[len(kept) - 1] = found
        logical = ""
    if logical and kept:
        kept[-1] = _CONTINUED.sub("", kept[-1])
    return kept, documents


def _read_heredocs(line: str, rest: Iterator[str]) -> Iterator[Heredoc]:
    for strip, quote, name in _HEREDOC.findall(line):
        body: list[str] = []
        for text in rest:
            text = text.lstrip("\t") if strip else text
            if text == name:
                break
            body.append(text)
        else:
            raise BuildError(f"the here-document {name} is never closed, in: {line.strip()}")
        yield Heredoc(name, "".join(f"{text}\n" for text in body), not quote)


def _flags(name: str, value: str) -> tuple[dict[str, str], str]:
    if name not in ("FROM", "RUN", "COPY", "ADD", "HEALTHCHECK"):
        return {}, value
    flags: dict[str, str] = {}
    while match := _FLAG.match(value):
        flags[match.group(1)] = match.group(2) or ""
        value = value[match.end() :]
    return flags, value


def _all_text(items: list[object]) -> bool:
    return all(isinstance(item, str) for item in items)
