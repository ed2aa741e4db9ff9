"""The data plane of volumes: blocks under signed URLs; trees, commits and blocks for nodes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from homeport.gateway.contents import send_content
from homeport.gateway.nodes_only import NodesOnly
from homeport.kernel.decoding import UNREADABLE
from homeport.kernel.errors import InvalidError
from homeport.link.volumes import BLOCK_BYTES, HASH_BYTES, CommitDone, VolumeCommit
from homeport.storage.contents import ContentMismatchError, ContentStore
from homeport.volumes.blocks import BlockGrant
from homeport.volumes.service import VolumeService

T = TypeVar("T")

_READ_WHOLE_BYTES: Final = 512 * 1024
"""Blocks up to this size are read whole: the disk's threads are asked once."""
_WHOLE_AT_ONCE: Final = 8
"""Larger blocks that are in memory as a whole, which is how they are sent the fastest; further ones
are sent piece by piece."""
_FIRST_BYTES: Final = 16 * 1024
"""What is copied behind the headers of an answer to be sent together with them."""
_REQUEST_BYTES_MAX: Final = 256 * 1024 * 1024
"""A commit of a million files has about 150 MB."""
_MISSING: Final = msgspec.msgpack.Decoder(list[bytes])
_COMMIT: Final = msgspec.msgpack.Decoder(VolumeCommit)


class VolumeRoutes:
    """``/block/<sha256>?t=<token>`` for clients, ``/_node/volumes`` and ``/_node/blocks``."""

    def __init__(self, volumes: VolumeService, files: ContentStore, nodes: NodesOnly) -> None:
        self._volumes = volumes
        self._blocks = volumes.blocks
        self._files = files
        self._nodes = nodes
        self._whole = 0

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_put("/block/{sha256}", self._put)
        router.add_get("/block/{sha256}", self._get)
        router.add_get("/_node/volumes/{id}/changes", self._nodes.only(self._changes))
        router.add_post("/_node/volumes/{id}/commit", self._nodes.only(self._commit))
        router.add_post("/_node/blocks/missing", self._nodes.only(self._missing))
        router.add_put("/_node/blocks/{sha256}", self._nodes.only(self._put_of_node))

    # ── clients ─────────────────────────────────────────────────────────────────────────────

    async def _put(self, request: web.Request) -> web.StreamResponse:
        grant = self._grant(request, "put")
        try:
            await self._receive(request, grant.sha256)
        except ContentMismatchError as error:
            return web.Response(status=400, text=error.message + "\n")
        return web.Response(body=b"stored")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        grant = self._grant(request, "get")
        if grant.length <= _READ_WHOLE_BYTES:
            return await self._small(grant)
        if self._whole < _WHOLE_AT_ONCE and self._files.local(grant.sha256) is not None:
            self._whole += 1
            try:
                return await self._send_whole(request, grant)
            finally:
                self._whole -= 1
        size = await self._stored_size(grant)
        whole = grant.offset == 0 and size <= grant.length
        if whole and (grant.stripped or size == grant.length) and size:
            headers = _digest_headers(grant.sha256)
            return await send_content(request, self._files, grant.sha256, size, headers)
        data = await self._blocks.part(
            grant.sha256, grant.offset, grant.length, stripped=grant.stripped
        )
        return web.Response(body=data)

    async def _small(self, grant: BlockGrant) -> web.Response:
        """The disk's threads are asked once."""
        data = await self._blocks.part(
            grant.sha256, grant.offset, grant.length, stripped=grant.stripped
        )
        is_whole = hashlib.sha256(data).hexdigest() == grant.sha256
        return web.Response(body=data, headers=_digest_headers(grant.sha256) if is_whole else None)

    async def _send_whole(self, request: web.Request, grant: BlockGrant) -> web.StreamResponse:
        """From memory; returns when (nearly) all of it is on its way."""
        data = await self._blocks.part(grant.sha256, grant.offset, grant.length + 1, stripped=True)
        is_whole = grant.offset == 0 and 0 < len(data) <= grant.length
        data = data[: grant.length]
        if not grant.stripped and len(data) < grant.length:
            data, is_whole = data.ljust(grant.length, b"\0"), False
        response = web.StreamResponse(headers=_digest_headers(grant.sha256) if is_whole else None)
        response.content_length = len(data)
        await response.prepare(request)
        if request.method != "HEAD":
            await response.write(data[:_FIRST_BYTES])
            await response.write(memoryview(data)[_FIRST_BYTES:])
        await response.write_eof()
        return response

    async def _stored_size(self, grant: BlockGrant) -> int:
        sizes = await self._files.sizes([grant.sha256])
        return sizes.get(grant.sha256, 0)

    def _grant(self, request: web.Request, action: str) -> BlockGrant:
        token = request.query.get("t", "")
        return self._blocks.grant(token, request.match_info["sha256"], action)

    async def _receive(self, request: web.Request, sha256: str) -> None:
        length = request.content_length
        if length is not None and length > BLOCK_BYTES:
            raise InvalidError(f"a block has up to {BLOCK_BYTES} bytes, not {length}")
        if length is not None and length <= _READ_WHOLE_BYTES:
            await self._blocks.put(sha256, await request.read())
        else:
            await self._blocks.receive(sha256, request.content.iter_any())

    # ── nodes ───────────────────────────────────────────────────────────────────────────────

    async def _changes(self, request: web.Request) -> web.StreamResponse:
        since = request.query.get("since", "0")
        if not since.isdecimal():
            raise InvalidError("since must be the number of a revision")
        changes = await self._volumes.changes(request.match_info["id"], int(since))
        with contextlib.closing(changes):
            response = web.StreamResponse(headers={"Content-Type": "application/msgpack"})
            response.content_length = changes.size
            await response.prepare(request)
            async for chunk in changes.chunks():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def _commit(self, request: web.Request) -> web.StreamResponse:
        commit = _decoded(_COMMIT, await _body(request))
        revision = await self._volumes.commit(request.match_info["id"], commit)
        return _packed(CommitDone(revision))

    async def _missing(self, request: web.Request) -> web.StreamResponse:
        hashes = _decoded(_MISSING, await _body(request))
        if any(len(sha256) != HASH_BYTES for sha256 in hashes):
            raise InvalidError(f"a hash has {HASH_BYTES} bytes")
        return _packed(await self._blocks.missing(hashes))

    async def _put_of_node(self, request: web.Request) -> web.StreamResponse:
        await self._receive(request, request.match_info["sha256"])
        return web.Response()


def _digest_headers(sha256: str) -> dict[str, str]:
    """What clients since 1.6 check the body by."""
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    return {"Repr-Digest": f"sha-256=:{digest}:"}


async def _body(request: web.Request) -> bytes:
    data = bytearray()
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > _REQUEST_BYTES_MAX:
            raise InvalidError(f"the request is longer than {_REQUEST_BYTES_MAX} bytes")
    return bytes(data)


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        raise InvalidError(f"the request does not fit: {error}") from None


def _packed(value: object) -> web.Response:
    return web.Response(body=msgspec.msgpack.encode(value), content_type="application/msgpack")
