"""What nodes fetch: manifests of mounts and files by content."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from homeport.kernel.errors import UnauthenticatedError
from homeport.mounts.service import MountService
from homeport.storage.blobs import FileStore


class NodeRoutes:
    """``GET /_node/mounts/<digest>`` and ``GET /_node/files/<sha256>`` for bearers of a token."""

    def __init__(
        self, mounts: MountService, files: FileStore, verify_node: Callable[[str], bool]
    ) -> None:
        self._mounts = mounts
        self._files = files
        self._verify_node = verify_node

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/_node/mounts/{digest}", self._manifest)
        router.add_get("/_node/files/{sha256}", self._file)

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        self._authenticate(request)
        data = await self._mounts.manifest_data(request.match_info["digest"])
        return web.Response(body=data, content_type="application/msgpack")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        self._authenticate(request)
        path = self._files.path(request.match_info["sha256"])
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    def _authenticate(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._verify_node(token.strip()):
            raise UnauthenticatedError("this is for nodes that know the installation's token")
