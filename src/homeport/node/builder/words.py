"""How Dockerfile instructions split and expand their words."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NESTED_MAX = 32
_WORD = re.compile(r"""(?:\\.|"(?:\\.|[^"\\])*"|'[^']*'|\S)+""", re.DOTALL)


class WordsError(ValueError):
    """The text cannot be read: an unfinished quote or variable."""


class _Reader:
    """Splits at unquoted blanks, removes quotes, expands variables outside single quotes."""

    def __init__(self, text: str, variables: Mapping[str, str] | None, *, split: bool) -> None:
        self.text = text
        self.variables: Mapping[str, str] = variables or {}
        self.expands = variables is not None
        self.split = split
        self.position = 0
        self.words: list[str] = []
        self.word: list[str] = []
        self.started = False

    def read(self) -> list[str]:
        while self.position < len(self.text):
            character = self.text[self.position]
            self.position += 1
            if character == "'":
                self._single_quoted()
            elif character == '"':
                self._double_quoted()
            elif character == "\\":
                self._put(self.text[self.position : self.position + 1])
                self.position += 1
            elif character == "$":
                self._put(self._variable())
            elif character.isspace() and self.split:
                self._finish()
            else:
                self._put(character)
        self._finish()
        return self.words

    def read_one(self) -> str:
        words = self.read()
        return words[0] if words else ""

    def _put(self, text: str) -> None:
        self.word.append(text)
        self.started = self.started or bool(text)

    def _finish(self) -> None:
        if self.started:
            self.words.append("".join(self.word))
        self.word, self.started = [], False

    def _single_quoted(self) -> None:
        end = self.text.find("'", self.position)
        if end < 0:
            raise WordsError(f"a single quote is never closed in: {self.text}")
        self._put(self.text[self.position : end])
        self.started = True
        self.position = end + 1

    def _double_quoted(self) -> None:
        self.started = True
        while self.position < len(self.text):
            character = self.text[self.position]
            self.position += 1
            if character == '"':
                return
            if character == "$":
                self._put(self._variable())
            elif character == "\\" and self.text[self.position : self.position + 1] in (
                '"',
                "\\",
                "$",
            ):
                self._put(self.text[self.position])
                self.position += 1
            else:
                self._put(character)
        raise WordsError(f"a double quote is never closed in: {self.text}")

    def _variable(self) -> str:
        if not self.expands:
            return "$"
        if self.text[self.position : self.position + 1] == "{":
            return self._braced()
        match = _NAME.match(self.text, self.position)
        if match is None:
            return "$"
        self.position = match.end()
        return self.variables.get(match.group(), "")

    def _braced(self) -> str:
        end = self._closing_brace()
        inner = self.text[self.position + 1 : end]
        self.position = end + 1
        match = _NAME.match(inner)
        if match is None:
            raise WordsError(f"not a variable: ${{{inner}}}")
        if inner.count("${") > _NESTED_MAX:
            raise WordsError(f"a variable has more than {_NESTED_MAX} others in it")
        return self._substitute(match.group(), inner[match.end() :], inner)

    def _substitute(self, name: str, rest: str, inner: str) -> str:
        """``${name…}``: the shell's forms, with ``:`` an empty value counts as unset."""
        value = self.variables.get(name)
        if not rest:
            return value or ""
        present = bool(value) if rest.startswith(":") else value is not None
        operator, word = rest.removeprefix(":")[:1], rest.removeprefix(":")[1:]
        if operator == "-":
            return (value or "") if present else expand(word, self.variables)
        if operator == "+":
            return expand(word, self.variables) if present else ""
        if operator == "?":
            if present:
                return value or ""
            why = expand(word, self.variables) or "it is not set"
            raise WordsError(f"${{{name}}}: {why}")
        if operator in ("#", "%", "/") and not rest.startswith(":"):
            return _edit(value or "", operator, expand(word, self.variables))
        raise WordsError(f"${{{inner}}}: this form of a variable is not known")

    def _closing_brace(self) -> int:
        depth = 0
        for index in range(self.position, len(self.text)):
            if self.text[index] == "{":
                depth += 1
            elif self.text[index] == "}":
                depth -= 1
                if depth == 0:
                    return index
        raise WordsError(f"a brace is never closed in: {self.text}")


def _edit(value: str, operator: str, word: str) -> str:
    """``#`` and ``%`` cut a pattern off the front or the end, doubled the longest; ``/`` replaces."""
    is_double = word.startswith(operator)
    word = word[1:] if is_double else word
    if operator == "/":
        pattern, _, new = word.partition("/")
        return re.sub(_glob(pattern), lambda _: new, value, count=0 if is_double else 1)
    cuts = range(len(value) + 1)
    for cut in cuts if is_double == (operator == "%") else reversed(cuts):
        part = value[:cut] if operator == "#" else value[cut:]
        if re.fullmatch(_glob(word), part, re.DOTALL):
            return value[cut:] if operator == "#" else value[:cut]
    return value


def _glob(pattern: str) -> str:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return "".join(parts)


def unquote(text: str) -> str:
    """``text`` without its quotes and escapes; variables stay as written. Raises ``WordsError``."""
    return _Reader(text, None, split=False).read_one()


def split(text: str, variables: Mapping[str, str]) -> list[str]:
    """The words of ``text``, quotes removed and variables expanded. Raises ``WordsError``."""
    return _Reader(text, variables, split=True).read()


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``text`` as one word: quotes removed, variables expanded. Raises ``WordsError``."""
    return _Reader(text, variables, split=False).read_one()


def raw_words(text: str) -> list[str]:
    """Split at blanks outside quotes, keeping quotes and variables as written."""
    return _WORD.findall(text)


def assignments(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """``NAME=value …`` or the old form ``NAME value`` of ENV and LABEL. Raises ``WordsError``."""
    words = raw_words(text)
    if not words:
        raise WordsError("needs a name and a value")
    if "=" not in words[0]:
        if len(words) < 2:
            raise WordsError(f"expected NAME=value, got: {text}")
        name, _, value = text.strip().partition(" ")
        return {expand(name, variables): expand(value.strip(), variables)}
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise WordsError(f"expected NAME=value, got: {word}")
        pairs[expand(name, variables)] = expand(value, variables)
    return pairs


def expand_document(text: str, variables: Mapping[str, str]) -> str:
    """``text`` with variables expanded and quotes left alone. Raises ``WordsError``."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return expand(f'"{quoted}"', variables)
