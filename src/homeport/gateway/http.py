"""The server's HTTP/1.1 side as one aiohttp application."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

from homeport.blobs.service import BlobService
from homeport.gateway.blobs import BlobRoutes
from homeport.gateway.errors import Handler, errors_to_answers
from homeport.gateway.images import ImageRoutes
from homeport.gateway.node_files import NodeRoutes
from homeport.gateway.nodes_only import NodesOnly
from homeport.gateway.pages import AppPages, PageRoutes
from homeport.gateway.tokens import TokenRoutes
from homeport.gateway.volumes import VolumeRoutes
from homeport.images.upkeep import ImageUpkeep
from homeport.mounts.service import MountService
from homeport.storage.contents import ContentStore
from homeport.volumes.service import VolumeService
from homeport.workspace.flows import TokenFlows

_READ_BYTES: Final = 512 * 1024
"""Body bytes buffered per connection before the sender is held back (twice this at most)."""
_BODY_BYTES_MAX: Final = 1024 * 1024
"""Bodies that are read whole: lists of parts. Uploads are streams and not bound by it."""


Access = Literal["everybody", "who knows the id", "who has a signed URL", "nodes"]
ACCESS: Final[Mapping[str, Access]] = {
    "/healthz": "everybody",
    "/apps/{id}": "who knows the id",
    "/apps/{id}/logs": "who knows the id",
    "/blob/{id}": "who has a signed URL",
    "/block/{sha256}": "who has a signed URL",
    "/token/{flow}": "who knows the id",
    "/_tokens/approve": "nodes",
    "/_images": "nodes",
    "/_images/remove": "nodes",
    "/_images/prune": "nodes",
    "/_images/caches/prune": "nodes",
    "/_images/bundle": "nodes",
    "/_node/mounts/{digest}": "nodes",
    "/_node/files/{sha256}": "nodes",
    "/_node/volumes/{id}/changes": "nodes",
    "/_node/volumes/{id}/commit": "nodes",
    "/_node/blocks/missing": "nodes",
    "/_node/blocks/{sha256}": "nodes",
}
"""Reviewed: who may use each route. Ids of apps cannot be guessed and are told to their users only."""


class _NotOurs(logging.Filter):
    """Says in one line that somebody sent what is not HTTP, or hung up: no error of ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | ConnectionError):
            record.levelno, record.levelname = logging.INFO, "INFO"
            record.msg, record.args = f"HTTP request came to nothing: {type(error).__name__}", None
            record.exc_info = None
        return True


def _logger() -> logging.Logger:
    logger = logging.getLogger("homeport.gateway.http1")
    if not logger.filters:
        logger.addFilter(_NotOurs())
    return logger


def _only_ours(is_elsewhere: Callable[[str], bool]) -> Middleware:
    """Send a request for a web function to a new connection: this one began with another host."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_elsewhere(request.host):
            return await handler(request)
        text = f"{request.host} is served on connections of its own; open another one.\n"
        answer = web.Response(status=421, text=text)
        answer.force_close()
        return answer

    return check


def create_http_app(
    blobs: BlobService,
    mounts: MountService,
    files: ContentStore,
    volumes: VolumeService,
    *,
    verify_node: Callable[[str], bool],
    pages: AppPages,
    images: ImageUpkeep | None = None,
    is_elsewhere: Callable[[str], bool] = lambda _: False,
    flows: TokenFlows | None = None,
    health: Callable[[], Mapping[str, Any]] = dict,
) -> web.Application:
    """Blobs, blocks of volumes, files for nodes, the pages of apps and ``/healthz``.

    ``verify_node`` says whether a bearer token is a node's; ``health`` gives what ``/healthz``
    reports besides ``status``. Hosts that are ``is_elsewhere`` are web functions' and served on
    connections of their own. The caller feeds connections to ``AppRunner(app).server``.
    """
    app = web.Application(
        middlewares=[_only_ours(is_elsewhere), errors_to_answers],
        client_max_size=_BODY_BYTES_MAX,
        handler_args={
            "access_log": None,
            "logger": _logger(),
            "read_bufsize": _READ_BYTES,
            "auto_decompress": False,  # hashes are of the bytes that were sent
        },
    )
    BlobRoutes(blobs, files).add_to(app.router)
    nodes = NodesOnly(verify_node)
    NodeRoutes(mounts, files, nodes).add_to(app.router)
    VolumeRoutes(volumes, files, nodes).add_to(app.router)
    if images is not None:
        ImageRoutes(images, nodes).add_to(app.router)
    if flows is not None:
        TokenRoutes(flows, nodes).add_to(app.router)
    PageRoutes(pages).add_to(app.router)

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", **health()})

    app.router.add_get("/healthz", healthz)
    _check_access(app)
    return app


def _check_access(app: web.Application) -> None:
    """Raises ``ValueError`` for a route of which ``ACCESS`` does not say who may use it."""
    paths = {route.resource.canonical for route in app.router.routes() if route.resource}
    if unknown := sorted(paths - set(ACCESS)):
        raise ValueError(f"ACCESS does not say who may use {', '.join(unknown)}")
