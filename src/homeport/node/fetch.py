"""Manifests and file contents from the server: from its disk when that is ours too, else by HTTP."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec

from homeport.kernel.errors import NotFoundError, UnavailableError
from homeport.kernel.ids import new
from homeport.link.messages import ManifestFile

CHUNK_BYTES = 1024 * 1024
MANIFEST_BYTES_MAX = 256 * 1024 * 1024
_MANIFEST = msgspec.msgpack.Decoder(list[ManifestFile])


class FileSource:
    """Where a node gets mount manifests and files.

    ``http_url`` and ``blob_root`` are asked for at each use: they come with the link's welcome.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        http_url: Callable[[], str],
        blob_root: Callable[[], str],
        token: Callable[[], str],
    ) -> None:
        self._session = session
        self._http_url = http_url
        self._blob_root = blob_root
        self._token = token

    def local(self, sha256: str) -> Path | None:
        """The file in the server's own store, if this process can read it there."""
        root = self._blob_root()
        if not root:
            return None
        path = Path(root) / sha256[:2] / sha256
        return path if os.access(path, os.R_OK) else None

    async def manifest(self, digest: str) -> list[ManifestFile]:
        """The files of mount ``digest``. Raises ``NotFoundError`` or ``UnavailableError``."""
        body = bytearray()
        async with self._get(f"/_node/mounts/{digest}") as response:
            _check(response, f"mount {digest}")
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                body += chunk
                if len(body) > MANIFEST_BYTES_MAX:
                    raise UnavailableError(f"the manifest of mount {digest} is too large")
        return _MANIFEST.decode(body)

    async def download(self, sha256: str, target: Path) -> None:
        """Write file ``sha256`` to ``target``, whole and verified or not at all."""
        temporary = target.with_name(f".{target.name}.{new('tm')}")
        digest = hashlib.sha256()
        try:
            async with self._get(f"/_node/files/{sha256}") as response:
                _check(response, f"file {sha256}")
                with temporary.open("wb") as file:
                    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                        digest.update(chunk)
                        file.write(chunk)
            if digest.hexdigest() != sha256:
                raise UnavailableError(f"file {sha256} arrived as {digest.hexdigest()}")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _get(self, path: str) -> aiohttp.client._RequestContextManager:  # pyright: ignore[reportPrivateUsage]
        url = self._http_url()
        if not url:
            raise UnavailableError("the node has not met its server yet")
        headers = {"Authorization": f"Bearer {self._token()}"}
        return self._session.get(url + path, headers=headers)


def _check(response: aiohttp.ClientResponse, what: str) -> None:
    if response.status == 404:
        raise NotFoundError(f"the server has no {what}")
    if response.status != 200:
        raise UnavailableError(f"the server answered {response.status} for {what}")
