"""The way of containers to the server's blobs: an HTTP relay inside each network namespace.

Beside it the node's command router is to be found, for programs that run others in sandboxes.

It listens at a loopback address of the container's own namespace, so it works without a network,
and passes nothing on but ``/blob/<id>`` and ``/block/<sha256>`` (signed URLs that the server made).
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Mapping
from typing import Final

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from homeport.link.messages import RELAY_HOST, RELAY_PORT, RELAY_ROUTER_PORT
from homeport.node.network import listen_in_netns
from homeport.node.runtime.port import Container

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CHUNK_BYTES: Final = 256 * 1024
CONNECTIONS_MAX: Final = 256
"""Requests passed on at once, for all containers together; more wait."""
CLOSE_S: Final = 1.0
_ALLOWED: Final = re.compile(r"^/(blob|block)/[0-9A-Za-z_-]+(\?[^#\s]*)?$")
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class BlobRelay:
    """One relay for all containers of a node.

    ``http_url`` says where the server is now; ``serve_router`` serves the command router on a
    listening socket until what it returns is called.
    """

    def __init__(
        self,
        http_url: Callable[[], str],
        serve_router: Callable[[socket.socket], Callable[[], None]] | None = None,
    ) -> None:
        self._http_url = http_url
        self._serve_router = serve_router
        self._session: aiohttp.ClientSession | None = None
        self.protocol_factory: web.Server | None = None

    async def start(self) -> None:
        """Open what all containers share."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "Content-Type", "User-Agent"),
        )
        self.protocol_factory = web.Server(self.handle, access_log=None)

    async def close(self) -> None:
        """End all requests."""
        if self.protocol_factory is not None:
            await self.protocol_factory.shutdown(CLOSE_S)
        if self._session is not None:
            await self._session.close()

    async def attach(self, container: Container) -> Callable[[], None]:
        """Listen in the network namespace of ``container``; the result ends it.

        Without the right to enter that namespace the container runs, but cannot move payloads
        that are too large for a message.
        """
        assert self.protocol_factory is not None
        ports = [RELAY_PORT]
        if self._serve_router is not None:
            ports.append(RELAY_ROUTER_PORT)

        def listen() -> list[socket.socket]:
            return [listen_in_netns(container.netns, RELAY_HOST, port) for port in ports]

        try:
            listener, *routers = await asyncio.to_thread(listen)
        except OSError as error:
            log.warning("no blob relay for a container", id=container.id, error=str(error))
            return lambda: None
        server = await asyncio.get_running_loop().create_server(
            self.protocol_factory, sock=listener
        )
        ends = [server.close]
        if self._serve_router is not None:
            ends += [self._serve_router(router) for router in routers]

        def end() -> None:
            for close in ends:
                close()

        return end

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass one request on, both bodies as streams."""
        assert self._session is not None
        if request.method not in ("GET", "HEAD", "PUT", "POST") or not _ALLOWED.match(
            request.raw_path
        ):
            return web.Response(status=403, text="This relay passes on blobs only.\n")
        base = self._http_url()
        if not base:
            return web.Response(status=503, text="The node has not met its server yet.\n")
        url = URL(base + request.raw_path, encoded=True)
        try:
            async with self._session.request(
                request.method,
                url,
                headers=_end_to_end(request.headers),
                data=request.content if request.body_exists else None,
                allow_redirects=False,
            ) as answer:
                return await _pass_back(request, answer)
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            log.warning("the server was not reached for a blob", error=str(error))
            return web.Response(status=503, text="The server cannot be reached; try again.\n")


async def _pass_back(
    request: web.BaseRequest, answer: aiohttp.ClientResponse
) -> web.StreamResponse:
    response = web.StreamResponse(
        status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
    )
    await response.prepare(request)
    async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
        await response.write(chunk)
    await response.write_eof()
    return response


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    result: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        if name.lower() not in _HOP_BY_HOP:
            result.add(name, value)
    return result
