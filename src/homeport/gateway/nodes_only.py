"""Routes for nodes: they show the installation's node token."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from homeport.gateway.errors import Handler
from homeport.kernel.errors import UnauthenticatedError


class NodesOnly:
    """``verify`` says whether a bearer token is a node's."""

    def __init__(self, verify: Callable[[str], bool]) -> None:
        self._verify = verify

    def only(self, handler: Handler) -> Handler:
        """``handler``, for nodes only. Others get ``UnauthenticatedError``."""

        async def checked(request: web.Request) -> web.StreamResponse:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._verify(token.strip()):
                raise UnauthenticatedError("this is for nodes that know the installation's token")
            return await handler(request)

        return checked
