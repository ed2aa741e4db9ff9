"""The grammar of Dockerfiles: text in, instructions with their place in the file out.

It follows the published Dockerfile reference: parser directives, line continuation by the escape
character (comments and blank lines inside a continued instruction are dropped), flags before the
arguments, JSON ("exec") forms, here-documents of RUN, COPY and ADD. What an instruction means is
not decided here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from homeport.node.builder.errors import BuildError
from homeport.node.builder.words import WordsError, raw_words, unquote

KNOWN = frozenset(
    [
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]
)
_TAKE_HEREDOCS = frozenset({"ADD", "COPY", "RUN"})
_ONBUILD_REFUSES = frozenset({"ONBUILD", "FROM", "MAINTAINER"})
_DIRECTIVE = re.compile(r"^#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(\S.*?)\s*$")
_DIRECTIVES = frozenset({"syntax", "escape", "check"})
_COMMENT = re.compile(r"^\s*#")
_HEREDOC = re.compile(r"^(\d*)<<(-?)([^<]+)$")
_INSTRUCTION = re.compile(r"^\s*(\S+)(?:\s+(.*))?$", re.DOTALL)
_FLAG_NAME = re.compile(r"^--([a-z][a-z-]*)(?:=(.*))?$", re.DOTALL)
_BYTES_MAX = 16 * 1024 * 1024
"""No Dockerfile written by people or programs is larger; a here-document could be."""


class DockerfileError(BuildError):
    """The text is no Dockerfile; the message names the line."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"Dockerfile line {line}: {problem}")
        self.line = line


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A here-document. ``expand``: COPY and ADD replace its variables, a shell does for RUN."""

    name: str
    body: str
    expand: bool
    descriptor: int = 0


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: ``name`` in capitals, ``flags`` as written, in order, apart from ``value``.

    ``line`` is where it begins, from 1. ``trigger`` is what an ONBUILD keeps for later.
    """

    name: str
    value: str
    flags: tuple[tuple[str, str], ...] = ()
    heredocs: tuple[Heredoc, ...] = ()
    line: int = 0
    trigger: Instruction | None = None

    @property
    def text(self) -> str:
        """The instruction on one line, for logs and messages."""
        if self.trigger is not None:
            return f"{self.name} {self.trigger.text}"
        flags = "".join(
            f"--{name}={value} " if value else f"--{name} " for name, value in self.flags
        )
        return f"{self.name} {flags}{self.value}".strip()

    @property
    def source(self) -> str:
        """The instruction as a Dockerfile would have it, here-documents included."""
        documents = "".join(f"\n{document.body}{document.name}" for document in self.heredocs)
        return self.text + documents

    def flag(self, name: str) -> str:
        """The value of a flag, the last one if repeated; empty if it is not given."""
        return next((value for key, value in reversed(self.flags) if key == name), "")

    def flag_all(self, name: str) -> list[str]:
        """The values of a flag that may be repeated."""
        return [value for key, value in self.flags if key == name]

    def has_flag(self, name: str) -> bool:
        return any(key == name for key, _ in self.flags)

    def json_words(self) -> list[str] | None:
        """The words of the JSON ("exec") form; ``None`` if it is not written so."""
        if not self.value.startswith("["):
            return None
        try:
            words: Any = json.loads(self.value)
        except (json.JSONDecodeError, RecursionError):
            return None
        if not isinstance(words, list):
            return None
        items = cast("list[object]", words)
        texts = [item for item in items if isinstance(item, str)]
        return texts if len(texts) == len(items) else None


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A FROM and what follows it. ``name`` is its alias in lower case, else empty."""

    index: int
    name: str
    start: Instruction
    steps: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A whole file: the ARGs before the first FROM, then one stage or more."""

    arguments: tuple[Instruction, ...]
    stages: tuple[StagePlan, ...]

    @property
    def size(self) -> int:
        """How many instructions there are."""
        return len(self.arguments) + sum(1 + len(stage.steps) for stage in self.stages)


def parse_file(text: str) -> Dockerfile:
    """Read a Dockerfile as stages. Raises ``DockerfileError`` naming the line."""
    arguments: list[Instruction] = []
    stages: list[tuple[Instruction, list[Instruction]]] = []
    for instruction in parse(text):
        if instruction.name == "FROM":
            stages.append((instruction, []))
        elif stages:
            stages[-1][1].append(instruction)
        elif instruction.name == "ARG":
            arguments.append(instruction)
        else:
            raise DockerfileError(
                instruction.line, f"only ARG may come before FROM, not {instruction.name}"
            )
    if not stages:
        raise DockerfileError(1, "there is no FROM")
    plans: list[StagePlan] = []
    for index, (start, steps) in enumerate(stages):
        plans.append(StagePlan(index, _alias(start), start, tuple(steps)))
    return Dockerfile(tuple(arguments), tuple(plans))


def _alias(start: Instruction) -> str:
    parts = start.value.split()
    if len(parts) == 1:
        return ""
    if len(parts) == 3 and parts[1].upper() == "AS":
        name = parts[2].lower()
        if not re.fullmatch(r"[a-z][a-z0-9-_.]*", name):
            raise DockerfileError(start.line, f"{parts[2]!r} cannot be the name of a stage")
        return name
    raise DockerfileError(start.line, "needs the form: FROM image [AS name]")


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile in order. Raises ``DockerfileError`` naming the line."""
    if len(text) > _BYTES_MAX:
        raise DockerfileError(1, f"the Dockerfile is over {_BYTES_MAX // 2**20} MiB")
    instructions = list(_Parser(text).instructions())
    if not instructions:
        raise DockerfileError(1, "the Dockerfile has no instructions")
    return instructions


class _Parser:
    def __init__(self, text: str) -> None:
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        self._lines = text.split("\n")
        self._position = 0
        self._escape = "\\"

    def instructions(self) -> Iterator[Instruction]:
        self._directives()
        while self._position < len(self._lines):
            line = self._lines[self._position]
            if not line.strip() or _COMMENT.match(line):
                self._position += 1
                continue
            start = self._position + 1
            yield self._instruction(self._logical_line(), start)

    def _directives(self) -> None:
        seen: set[str] = set()
        while self._position < len(self._lines):
            match = _DIRECTIVE.match(self._lines[self._position])
            name = match.group(1).lower() if match else ""
            if match is None or name not in _DIRECTIVES:
                return
            if name in seen:
                raise DockerfileError(self._position + 1, f"the directive {name} is repeated")
            seen.add(name)
            if name == "escape":
                if match.group(2) not in ("\\", "`"):
                    raise DockerfileError(self._position + 1, "the escape directive takes \\ or `")
                self._escape = match.group(2)
            self._position += 1

    def _logical_line(self) -> str:
        """The instruction that begins at the position, continued lines joined."""
        escape = re.escape(self._escape)
        continued = re.compile(rf"(?:(?<!{escape})|^){escape}[ \t]*$")
        joined = ""
        is_first = True
        while self._position < len(self._lines):
            line = self._lines[self._position]
            self._position += 1
            if not is_first and (not line.strip() or _COMMENT.match(line)):
                continue
            is_first = False
            match = continued.search(line)
            if match is None:
                return joined + line
            joined += line[: match.start()]
        return joined

    def _instruction(self, line: str, number: int) -> Instruction:
        match = _INSTRUCTION.match(line)
        name = match.group(1).upper() if match else ""
        if match is None or name not in KNOWN:
            raise DockerfileError(number, f"there is no instruction {_shown(name or line)}")
        flags, value = self._flags((match.group(2) or "").strip(), number)
        if name == "ONBUILD":
            return self._onbuild(value, flags, number)
        if not value and not (name == "CMD" or name == "ENTRYPOINT"):
            raise DockerfileError(number, f"{name} needs arguments")
        heredocs = self._heredocs(name, value, number)
        return Instruction(name, value, flags, heredocs, number)

    def _onbuild(self, value: str, flags: tuple[tuple[str, str], ...], number: int) -> Instruction:
        if flags or not value:
            raise DockerfileError(number, "ONBUILD needs an instruction")
        trigger = self._instruction(value, number)
        if trigger.name in _ONBUILD_REFUSES:
            raise DockerfileError(number, f"ONBUILD cannot have {trigger.name}")
        return Instruction("ONBUILD", value, (), (), number, trigger)

    def _flags(self, value: str, number: int) -> tuple[tuple[tuple[str, str], ...], str]:
        found: list[tuple[str, str]] = []
        while value.startswith("--"):
            word, rest = _first_word(value)
            if word == "--":
                return tuple(found), rest
            match = _FLAG_NAME.match(word)
            if match is None:
                raise DockerfileError(number, f"{_shown(word)} is not a flag")
            try:
                text = unquote(match.group(2) or "")
            except WordsError as error:
                raise DockerfileError(number, str(error)) from None
            found.append((match.group(1), text))
            value = rest
        return tuple(found), value

    def _heredocs(self, name: str, value: str, number: int) -> tuple[Heredoc, ...]:
        if name not in _TAKE_HEREDOCS or "<<" not in value:
            return ()
        return tuple(self._read_heredocs(value, number))

    def _read_heredocs(self, value: str, number: int) -> Iterator[Heredoc]:
        for word in raw_words(value):
            match = _HEREDOC.match(word)
            if match is None:
                continue
            descriptor, dash, raw = match.groups()
            try:
                name = unquote(raw)
            except WordsError as error:
                raise DockerfileError(number, str(error)) from None
            body: list[str] = []
            while True:
                if self._position >= len(self._lines):
                    raise DockerfileError(number, f"the here-document {name} is never closed")
                line = self._lines[self._position]
                self._position += 1
                line = line.lstrip("\t") if dash else line
                if line == name:
                    break
                body.append(line)
            text = "".join(f"{line}\n" for line in body)
            yield Heredoc(name, text, not re.search(r"['\"]", raw), int(descriptor or 0))


def _first_word(text: str) -> tuple[str, str]:
    """The first word with its quotes, and what comes after it."""
    words = raw_words(text)
    word = words[0] if words else text
    at = text.index(word) + len(word)
    return word, text[at:].strip()


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
