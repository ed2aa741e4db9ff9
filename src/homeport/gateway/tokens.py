"""Sign-ins: the page that says how one is approved, and the owner's approval."""

from __future__ import annotations

import html
from typing import Final

import msgspec
from aiohttp import web

from homeport.gateway.nodes_only import NodesOnly
from homeport.kernel.decoding import UNREADABLE
from homeport.kernel.errors import InvalidError
from homeport.workspace.flows import TokenFlows

_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Homeport: sign in</title>
<body style="font-family: sans-serif; max-width: 40em; margin: 4em auto">
<h1>Sign in to Homeport</h1>
<p>{text}</p>
</body></html>
"""


class _Approval(msgspec.Struct):
    code: str


class TokenRoutes:
    """``/token/<flow>`` for anyone, ``/_tokens/approve`` for bearers of the node token."""

    def __init__(self, flows: TokenFlows, nodes: NodesOnly) -> None:
        self._flows = flows
        self._nodes = nodes

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/token/{flow}", self._page)
        router.add_post("/_tokens/approve", self._nodes.only(self._approve))

    async def _page(self, request: web.Request) -> web.StreamResponse:
        flow = self._flows.find(request.match_info["flow"])
        text = (
            "This sign-in is approved: return to your terminal."
            if flow.approved.is_set()
            else "On the machine that Homeport runs on, run "
            "<code>homeport token approve CODE</code> with the code in your terminal."
        )
        page = _PAGE.format(text=text if "<code>" in text else html.escape(text))
        return web.Response(text=page, content_type="text/html")

    async def _approve(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = msgspec.json.decode(await request.read(), type=_Approval)
        except UNREADABLE as error:
            raise InvalidError(str(error)) from None
        return web.json_response({"token_id": await self._flows.approve(asked.code)})
