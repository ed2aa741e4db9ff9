"""``/_images``: the upkeep of images, for the ``homeport image`` commands."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web

from homeport.gateway.nodes_only import NodesOnly
from homeport.images.upkeep import ImageBundle, ImageUpkeep
from homeport.kernel.decoding import UNREADABLE
from homeport.kernel.errors import InvalidError

T = TypeVar("T")


class _Remove(msgspec.Struct):
    image_ids: list[str]
    force: bool = False


class _Prune(msgspec.Struct):
    dry_run: bool = False


class ImageRoutes:
    """For bearers of the node token, who own the machine."""

    def __init__(self, upkeep: ImageUpkeep, nodes: NodesOnly) -> None:
        self._upkeep = upkeep
        self._nodes = nodes

    def add_to(self, router: web.UrlDispatcher) -> None:
        only = self._nodes.only
        router.add_get("/_images", only(self._list))
        router.add_post("/_images/remove", only(self._remove))
        router.add_post("/_images/prune", only(self._prune))
        router.add_post("/_images/caches/prune", only(self._prune_caches))
        router.add_get("/_images/bundle", only(self._bundle))
        router.add_post("/_images/bundle", only(self._take))

    async def _list(self, _request: web.Request) -> web.StreamResponse:
        return _json(await self._upkeep.list())

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        asked = _decoded(await request.read(), _Remove)
        return _json(await self._upkeep.remove(asked.image_ids, force=asked.force))

    async def _prune(self, request: web.Request) -> web.StreamResponse:
        asked = _decoded(await request.read(), _Prune)
        return _json(await self._upkeep.prune(dry_run=asked.dry_run))

    async def _prune_caches(self, _request: web.Request) -> web.StreamResponse:
        return _json({"freed_bytes": await self._upkeep.prune_caches()})

    async def _bundle(self, request: web.Request) -> web.StreamResponse:
        bundle = await self._upkeep.bundle(request.query.get("image", ""))
        return web.Response(body=msgspec.msgpack.encode(bundle))

    async def _take(self, request: web.Request) -> web.StreamResponse:
        try:
            bundle = msgspec.msgpack.decode(await request.read(), type=ImageBundle)
        except UNREADABLE as error:
            raise InvalidError(f"this is no bundle of images: {error}") from None
        return _json(await self._upkeep.take(bundle, request.query.get("node", "")))


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except UNREADABLE as error:
        raise InvalidError(str(error)) from None
