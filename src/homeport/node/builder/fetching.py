"""What ADD can name beyond the build context: files by URL, git repositories, archives."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import ipaddress
import os
import re
import socket
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import msgspec

from homeport.kernel.decoding import UNREADABLE
from homeport.node.builder.archives import untar
from homeport.node.builder.context import BuildContext, ContextFile, Selection, select
from homeport.node.builder.errors import BuildError
from homeport.node.caches import touch
from homeport.node.layers import layer_key, remove_tree

DOWNLOAD_BYTES_MAX = 64 * 1024**3
"""A bigger file is a mistake, or an attack on the disk."""
_CHUNK = 1024 * 1024
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
_REMOTE_MODE = 0o600
"""What the Dockerfile reference gives files that come by URL."""


class _Remembered(msgspec.Struct, frozen=True):
    """What a URL held when it was last asked."""

    sha256: str
    etag: str = ""
    modified: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class GitReference:
    """``https://…/repo.git#ref:folder``."""

    url: str
    ref: str
    folder: str


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def parse_git(text: str) -> GitReference | None:
    """The repository that ``text`` names, or ``None`` if it names none."""
    address, _, fragment = text.partition("#")
    is_git = text.startswith(("git@", "git://", "ssh://")) or (
        # No parser of URLs: they raise at some, and fetching it says better what is wrong with it.
        is_url(text) and re.match(r"https?://[^/?]*/[^?]*\.git(\?|$)", address) is not None
    )
    if not is_git:
        return None
    ref, _, folder = fragment.partition(":")
    return GitReference(address, ref or "HEAD", folder.strip("/"))


class Fetcher:
    """Downloads for ADD, kept under ``directory`` by content.

    Who asks holds the cache (``caches.DOWNLOADS``) until the files have been used.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def url(self, url: str, checksum: str = "") -> tuple[Path, str, str]:
        """``(file, its SHA-256, the name it has there)``. Raises ``BuildError``."""
        self._directory.mkdir(parents=True, exist_ok=True)
        record = self._directory / f"{layer_key('url', url)}.json"
        known = _read(record)
        if known is not None and not self._file(known.sha256).exists():
            known = None
        if known is not None:
            touch(self._file(known.sha256))
        if known is not None and checksum == f"sha256:{known.sha256}":
            return self._file(known.sha256), known.sha256, known.name
        found = await self._ask(url, known)
        if checksum and checksum != f"sha256:{found.sha256}":
            raise BuildError(f"{url} has the digest sha256:{found.sha256}, not {checksum}")
        await asyncio.to_thread(record.write_bytes, msgspec.json.encode(found))
        return self._file(found.sha256), found.sha256, found.name

    def _file(self, sha256: str) -> Path:
        return self._directory / sha256

    async def _ask(self, url: str, known: _Remembered | None) -> _Remembered:
        headers: dict[str, str] = {}
        if known is not None and known.etag:
            headers["If-None-Match"] = known.etag
        elif known is not None and known.modified:
            headers["If-Modified-Since"] = known.modified
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(socket_factory=_socket),
                    timeout=timeout,
                    trust_env=True,
                ) as session,
                session.get(url, headers=headers) as response,
            ):
                if response.status == 304 and known is not None:
                    return known
                if response.status != 200:
                    raise BuildError(f"{url} answers {response.status} {response.reason}")
                sha256 = await self._store(url, response)
                name = unquote(urlsplit(url).path).rstrip("/").rsplit("/", 1)[-1]
                got = response.headers
                return _Remembered(sha256, got.get("ETag", ""), got.get("Last-Modified", ""), name)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise BuildError(f"{url} cannot be had: {error or type(error).__name__}") from error

    async def _store(self, url: str, response: aiohttp.ClientResponse) -> str:
        digest = hashlib.sha256()
        partial = self._directory / f"partial-{os.getpid()}-{id(response)}"
        size = 0
        try:
            with partial.open("wb") as file:
                async for chunk in response.content.iter_chunked(_CHUNK):
                    size += len(chunk)
                    if size > DOWNLOAD_BYTES_MAX:
                        raise BuildError(f"{url} is over {DOWNLOAD_BYTES_MAX // 1024**3} GiB")
                    digest.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
            partial.replace(self._file(digest.hexdigest()))
        finally:
            partial.unlink(missing_ok=True)
        return digest.hexdigest()

    async def git(self, reference: GitReference, *, keep_history: bool) -> tuple[Selection, str]:
        """The files of a repository and the commit they are of. Raises ``BuildError``."""
        self._directory.mkdir(parents=True, exist_ok=True)
        commit = await self._commit_of(reference)
        name = layer_key("git", reference.url, commit, str(keep_history))
        place = self._directory / f"git-{name}"
        if not place.exists():
            await self._clone(reference, commit, place, keep_history)
        touch(place)
        source = BuildContext(place, name, ())
        selection = await asyncio.to_thread(select, source, reference.folder or ".")
        if not selection.files:
            raise BuildError(f"{reference.url} has no {reference.folder} at {reference.ref}")
        return selection, commit

    async def _commit_of(self, reference: GitReference) -> str:
        if re.fullmatch(r"[0-9a-f]{40}", reference.ref):
            return reference.ref
        listed = await _git("ls-remote", "--", reference.url, reference.ref)
        for line in listed.splitlines():
            return line.split()[0]
        raise BuildError(f"{reference.url} has no {reference.ref}")

    async def _clone(
        self, reference: GitReference, commit: str, place: Path, keep_history: bool
    ) -> None:
        work = place.with_name(f"{place.name}.{os.getpid()}")
        try:
            await _git("init", "--quiet", str(work))
            here = ("-C", str(work))
            await _git(*here, "fetch", "--quiet", "--depth=1", "--", reference.url, commit)
            await _git(*here, "checkout", "--quiet", "--detach", "FETCH_HEAD")
            if not keep_history:
                await asyncio.to_thread(remove_tree, work / ".git")
            await asyncio.to_thread(_settle, work, place)
        finally:
            await asyncio.to_thread(remove_tree, work)


def _settle(work: Path, place: Path) -> None:
    if not place.exists():
        work.replace(place)


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket to reach ``address``, which must be one that containers may reach too.

    A link-local one is a cloud's metadata, with credentials of the machine.
    """
    family, kind, protocol, _, place = address
    target = ipaddress.ip_address(place[0].partition("%")[0])
    if (getattr(target, "ipv4_mapped", None) or target).is_link_local:
        raise OSError(errno.EACCES, f"{place[0]} is an address of this machine's own network")
    return socket.socket(family, kind, protocol)


def remote_selection(file: Path, name: str, destination: str) -> Selection:
    """A downloaded file as a source of ADD. Raises ``BuildError`` if it has no name to get."""
    if not name and destination.endswith("/"):
        raise BuildError("the URL names no file: give the destination a file name")
    return Selection({name or "file": ContextFile(_REMOTE_MODE, file)}, False)


def is_archive(file: ContextFile) -> bool:
    """Whether ADD unpacks this file: a tar archive, plain or compressed, told by its content."""
    if file.path is None or file.is_dir or file.link is not None:
        return False
    with file.path.open("rb") as opened:
        start = opened.read(6)
    if not start.startswith(_MAGIC) and not _has_tar_header(file.path):
        return False
    try:
        with tarfile.open(file.path) as archive:
            archive.next()
    except (tarfile.TarError, OSError, EOFError):
        return False
    return True


def _has_tar_header(path: Path) -> bool:
    with path.open("rb") as opened:
        opened.seek(257)
        return opened.read(5) == b"ustar"


def unpack(file: Path, target: Path) -> Selection:
    """Unpack a tar archive and select all of it. Nothing lands outside ``target``.

    Raises ``BuildError`` for a broken archive or one that tries to.
    """
    owners = untar(file, target)
    entries = BuildContext(target, "", ()).entries()
    return Selection(
        {name: _owned(entry, target / name, owners.get(name)) for name, entry in entries.items()},
        True,
    )


def _owned(entry: ContextFile, path: Path, owner: tuple[int, int] | None) -> ContextFile:
    mode = path.lstat().st_mode & 0o7777 if entry.is_dir else entry.mode
    return ContextFile(mode, entry.path, entry.data, entry.link, entry.is_dir, owner)


def _read(record: Path) -> _Remembered | None:
    try:
        return msgspec.json.decode(record.read_bytes(), type=_Remembered)
    except (FileNotFoundError, *UNREADABLE):
        return None


def _git_environment() -> Mapping[str, str]:
    return {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "LC_ALL": "C"}


async def _git(*arguments: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            "git",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_git_environment(),
        )
    except FileNotFoundError:
        raise BuildError("ADD of a git repository needs git on the node: install git") from None
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        text = errors.decode(errors="replace").strip()
        raise BuildError(f"git {arguments[0]} failed: {text[-500:]}")
    return output.decode(errors="replace")
