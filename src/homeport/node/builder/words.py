"""How Dockerfile instructions split and expand their words."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"""(?:\\.|"(?:\\.|[^"\\])*"|'[^']*'|\S)+""", re.DOTALL)


class WordsError(ValueError):
    """The text cannot be read: an unfinished quote or variable."""


class _Reader:
    """Splits at unquoted blanks, removes quotes, expands variables outside single quotes."""

    def __init__(self, text: str, variables: Mapping[str, str], *, split: bool) -> None:
        self.text = text
        self.variables = variables
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
        value = self.variables.get(match.group())
        operator, word = inner[match.end() : match.end() + 2], inner[match.end() + 2 :]
        if not operator:
            return value or ""
        if operator == ":-":
            return value or expand(word, self.variables)
        if operator == ":+":
            return expand(word, self.variables) if value else ""
        if operator == ":?" and value:
            return value
        raise WordsError(f"${{{inner}}}: this form of a variable is not supported, or it is unset")

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


def split(text: str, variables: Mapping[str, str]) -> list[str]:
    """The words of ``text``, quotes removed and variables expanded. Raises ``WordsError``."""
    return _Reader(text, variables, split=True).read()


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``text`` as one word: quotes removed, variables expanded. Raises ``WordsError``."""
    words = _Reader(text, variables, split=False).read()
    return words[0] if words else ""


def raw_words(text: str) -> list[str]:
    """Split at blanks outside quotes, keeping quotes and variables as written."""
    return _WORD.findall(text)


def assignments(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """``NAME=value …`` or the old form ``NAME value`` of ENV and LABEL. Raises ``WordsError``."""
    words = raw_words(text)
    if not words:
        raise WordsError("needs a name and a value")
    if "=" not in words[0]:
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
