"""Names of registry images, as far as images are made for them here without a registry."""

from __future__ import annotations

import re
from dataclasses import dataclass

from homeport.node.builder.debian import STABLE, SUITES, Suite, find_suite

DEFAULT_PYTHON = "3.13"
"""What ``python:slim`` without a version means."""

_PYTHON_TAG = re.compile(
    r"^(?:(?P<version>3(?:\.\d+)?(?:\.\d+)?)|latest)?-?(?P<slim>slim)?-?(?P<suite>[a-z]+)?$"
)
_DATED = re.compile(r"-?\d{8}(?:\.\d+)?$")
_HUB = ("docker.io/", "index.docker.io/", "registry-1.docker.io/", "registry.hub.docker.com/")
_ECR_HUB = "public.ecr.aws/docker/"
_UV = "ghcr.io/astral-sh/uv"
_UV_TAG = re.compile(r"^(?P<version>\d+(?:\.\d+){0,2}|latest)?(?:-(?P<rest>[a-z].*))?$")
_UBUNTU = {
    "20.04": "bullseye",
    "22.04": "bookworm",
    "24.04": "trixie",
    "26.04": "forky",
    "focal": "bullseye",
    "jammy": "bookworm",
    "noble": "trixie",
    "latest": "trixie",
    "rolling": "forky",
    "devel": "forky",
}
"""The Debian release whose C library and packages are nearest to an Ubuntu release's."""


@dataclass(frozen=True, slots=True)
class DebianReference:
    """``debian:<suite>[-slim]``, or what stands in for ``instead_of``."""

    suite: Suite
    instead_of: str = ""


@dataclass(frozen=True, slots=True)
class PythonReference:
    """``python:<version>[-slim][-<suite>]``; ``version`` as written: ``3.11`` or ``3.11.12``."""

    version: str
    suite: Suite

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])


@dataclass(frozen=True, slots=True)
class UvReference:
    """``ghcr.io/astral-sh/uv:<version>``: the two programs of uv and nothing else.

    ``version`` is ``latest``, ``0.9`` or ``0.9.3``; with ``base`` they are in its
    ``/usr/local/bin``.
    """

    version: str
    base: DebianReference | PythonReference | None = None


Reference = DebianReference | PythonReference | UvReference


def parse_reference(text: str) -> Reference | None:
    """What image ``text`` names, or ``None`` if only a registry could know it."""
    if "@" in text:
        return None  # a digest names exact bytes, which nothing made here has
    repository, tag = split_tag(text)
    if repository == _UV:
        return _parse_uv(tag)
    for prefix in (*_HUB, _ECR_HUB):
        repository = repository.removeprefix(prefix)
    repository = repository.removeprefix("library/")
    if repository == "debian":
        return _parse_debian(tag)
    if repository == "ubuntu":
        return _parse_ubuntu(text, tag)
    if repository == "python":
        return _parse_python(tag)
    return None


def split_tag(text: str) -> tuple[str, str]:
    """``(repository, tag)``; a port is no tag."""
    head, slash, last = text.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{head}{slash}{name}", tag


def unmakeable(text: str) -> str:
    """Why a well-known image cannot be made here; empty for one nothing is known of."""
    repository, tag = split_tag(text)
    name = repository.rsplit("/", 1)[-1]
    if name == "alpine" or "alpine" in tag:
        return (
            "Alpine has another C library (musl) than everything that can be made here, so "
            "nothing can stand in for it: use the -slim image of the same name"
        )
    if name == "micromamba" or repository.startswith(("mambaorg/", "condaforge/", "continuumio/")):
        return (
            "conda packages come from a channel and their base image from a registry: use "
            "debian_slim() with pip_install or uv_pip_install, or install skopeo on the node"
        )
    if repository.startswith(("nvidia/", "nvcr.io/")):
        return (
            "CUDA images are only in a registry; on debian_slim, pip packages such as torch bring "
            "the CUDA libraries themselves"
        )
    return ""


def _parse_debian(tag: str) -> DebianReference | None:
    name = _DATED.sub("", tag.removesuffix("-slim").removesuffix("-backports"))
    suite = find_suite(name or STABLE)
    return DebianReference(suite) if suite is not None else None


def _parse_ubuntu(text: str, tag: str) -> DebianReference | None:
    name = _DATED.sub("", tag) or "latest"
    suite = find_suite(_UBUNTU.get(name, ""))
    return DebianReference(suite, instead_of=text) if suite is not None else None


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


def _parse_uv(tag: str) -> UvReference | None:
    match = _UV_TAG.match(tag) if tag[:1].isdigit() or tag.startswith("latest") else None
    version = (match.group("version") if match else "") or "latest"
    rest = (match.group("rest") or "") if match else tag
    if not rest:
        return UvReference(version)
    base: DebianReference | PythonReference | None
    if rest.startswith("python"):
        base = _parse_python(rest.removeprefix("python"))
    else:
        base = _parse_debian("" if rest in ("debian", "debian-slim") else rest)
    return UvReference(version, base) if base is not None else None
