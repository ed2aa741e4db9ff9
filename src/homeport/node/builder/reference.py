"""Names of registry images, as far as bases are made for them here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from homeport.node.builder.debian import STABLE, SUITES, Suite, find_suite

DEFAULT_PYTHON = "3.13"
"""What ``python:slim`` without a version means."""

_PYTHON_TAG = re.compile(
    r"^(?:(?P<version>3(?:\.\d+)?(?:\.\d+)?)|latest)?-?(?P<slim>slim)?-?(?P<suite>[a-z]+)?$"
)
_DATED = re.compile(r"-\d{8}$")


@dataclass(frozen=True, slots=True)
class DebianReference:
    """``debian:<suite>[-slim]``."""

    suite: Suite


@dataclass(frozen=True, slots=True)
class PythonReference:
    """``python:<version>[-slim][-<suite>]``; ``version`` as written: ``3.11`` or ``3.11.12``."""

    version: str
    suite: Suite

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])


def parse_reference(text: str) -> DebianReference | PythonReference | None:
    """What base ``text`` names, or ``None`` if only a registry could know it."""
    name = text.split("@", 1)[0]
    for prefix in ("docker.io/", "index.docker.io/", "library/", "public.ecr.aws/docker/library/"):
        name = name.removeprefix(prefix)
    repository, _, tag = name.partition(":")
    if "@" in text:
        return None  # a digest names exact bytes, which nothing made here has
    if repository == "debian":
        suite = find_suite(_DATED.sub("", tag.removesuffix("-slim")) or STABLE)
        return DebianReference(suite) if suite is not None else None
    if repository == "python":
        return _parse_python(tag)
    return None


def _parse_python(tag: str) -> PythonReference | None:
    match = _PYTHON_TAG.match(tag)
    if match is None:
        return None
    named = match.group("suite") or STABLE
    if named not in {suite.name for suite in SUITES}:
        return None
    suite = find_suite(named)
    assert suite is not None
    version = match.group("version") or DEFAULT_PYTHON
    return PythonReference(DEFAULT_PYTHON if version == "3" else version, suite)
