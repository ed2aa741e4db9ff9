"""What nodes fetch: manifests of mounts and files by content."""

from __future__ import annotations

from aiohttp import web

from homeport.gateway.contents import send_content
from homeport.gateway.nodes_only import NodesOnly
from homeport.mounts.service import MountService
from homeport.storage.contents import ContentStore


class NodeRoutes:
    """``GET /_node/mounts/<digest>`` and ``GET /_node/files/<sha256>`` for bearers of a token."""

    def __init__(self, mounts: MountService, files: ContentStore, nodes: NodesOnly) -> None:
        self._mounts = mounts
        self._files = files
        self._nodes = nodes

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/_node/mounts/{digest}", self._nodes.only(self._manifest))
        router.add_get("/_node/files/{sha256}", self._nodes.only(self._file))

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        data = await self._mounts.manifest_data(request.match_info["digest"])
        return web.Response(body=data, content_type="application/msgpack")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return await send_content(request, self._files, request.match_info["sha256"])
