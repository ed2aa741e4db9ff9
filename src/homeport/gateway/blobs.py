"""The data plane of blobs: bytes in and out under signed URLs."""

from __future__ import annotations

import base64
import re
from typing import Final

from aiohttp import web

from homeport.blobs.model import Grant
from homeport.blobs.service import BlobService
from homeport.gateway.contents import send_content
from homeport.kernel.errors import InvalidError
from homeport.storage.contents import ContentMismatchError, ContentStore

_PART: Final = re.compile(r"<Part>(.*?)</Part>", re.DOTALL)
_NUMBER: Final = re.compile(r"<PartNumber>\s*(\d{1,5})\s*</PartNumber>")
_ETAG: Final = re.compile(r"<ETag>\s*(?:\"|&quot;)?([0-9a-f]{32})(?:\"|&quot;)?\s*</ETag>")
_MISMATCH: Final = "The Content-MD5 you specified did not match what we received."
"""The client explains this sentence to its user: the file changed during the upload."""


class BlobRoutes:
    """``PUT``, ``POST``, ``GET`` and ``HEAD`` of ``/blob/<id>?t=<token>``."""

    def __init__(self, service: BlobService, files: ContentStore) -> None:
        self._service = service
        self._files = files

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_put("/blob/{id}", self._put)
        router.add_post("/blob/{id}", self._complete)
        router.add_get("/blob/{id}", self._get)

    async def _put(self, request: web.Request) -> web.StreamResponse:
        grant = self._grant(request, "put", "part")
        if request.content_length not in (None, grant.body_size):
            raise InvalidError(
                f"the body must have {grant.body_size} bytes, not {request.content_length}"
            )
        try:
            md5 = await self._service.receive(grant, request.content.iter_any())
            _check_md5_header(request, md5)
        except ContentMismatchError as error:
            return web.Response(status=400, text=f"{_MISMATCH}\n{error.message}\n")
        return web.Response(status=200, headers={"ETag": f'"{md5}"'})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        grant = self._grant(request, "complete")
        etag = await self._service.complete(grant, _listed_parts(await request.text()))
        xml = (
            f'<CompleteMultipartUploadResult><ETag>"{etag}"</ETag></CompleteMultipartUploadResult>'
        )
        return web.Response(text=xml, content_type="application/xml")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        grant = self._grant(request, "get")
        blob = await self._service.get(grant.blob_id)
        return await send_content(request, self._files, blob.sha256, blob.size)

    def _grant(self, request: web.Request, *actions: str) -> Grant:
        token = request.query.get("t", "")
        return self._service.grant(token, request.match_info["id"], *actions)


def _check_md5_header(request: web.Request, md5: str) -> None:
    header = request.headers.get("Content-MD5")
    if header is not None and header != base64.b64encode(bytes.fromhex(md5)).decode():
        raise ContentMismatchError(f"the content has MD5 {md5} (hex)")


def _listed_parts(body: str) -> list[tuple[int, str]]:
    """The parts that a ``CompleteMultipartUpload`` document lists: (number, MD5 hex)."""
    parts: list[tuple[int, str]] = []
    for block in _PART.findall(body):
        number, etag = _NUMBER.search(block), _ETAG.search(block)
        if number is None or etag is None:
            raise InvalidError("each part needs its PartNumber and the ETag of its upload")
        parts.append((int(number.group(1)), etag.group(1)))
    if not parts:
        raise InvalidError("the body must list the parts in a CompleteMultipartUpload document")
    return parts
