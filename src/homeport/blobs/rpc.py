"""RPC handlers of blobs."""

from __future__ import annotations

from urllib.parse import urlsplit

from modal_proto import api_pb2

from homeport.blobs.model import Upload, hex_of_base64, single_part_allowed
from homeport.blobs.service import BlobService
from homeport.rpc.context import Context


class BlobRpc:
    """``BlobCreate`` and ``BlobGet``."""

    def __init__(self, service: BlobService) -> None:
        self._service = service

    async def BlobCreate(
        self, request: api_pb2.BlobCreateRequest, ctx: Context
    ) -> api_pb2.BlobCreateResponse:
        host = urlsplit(ctx.http_base).hostname or ""
        upload = await self._service.create_upload(
            ctx.http_base,
            size=request.content_length,
            sha256=hex_of_base64(request.content_sha256_base64, 32, "content_sha256_base64"),
            md5=hex_of_base64(request.content_md5, 16, "content_md5"),
            single_part=single_part_allowed(host, ctx.client_version),
        )
        return _upload_response(upload)

    async def BlobGet(
        self, request: api_pb2.BlobGetRequest, ctx: Context
    ) -> api_pb2.BlobGetResponse:
        url = await self._service.download_url(ctx.http_base, request.blob_id)
        return api_pb2.BlobGetResponse(download_url=url)


def _upload_response(upload: Upload) -> api_pb2.BlobCreateResponse:
    """Both generations of fields: 1.0.0–1.0.3 read the singular ones, later clients the lists."""
    if upload.url:
        return api_pb2.BlobCreateResponse(
            blob_id=upload.blob_id,
            upload_url=upload.url,
            blob_ids=[upload.blob_id],
            upload_urls=api_pb2.UploadUrlList(items=[upload.url]),
        )
    parts = api_pb2.MultiPartUpload(
        part_length=upload.part_size,
        upload_urls=upload.part_urls,
        completion_url=upload.completion_url,
    )
    return api_pb2.BlobCreateResponse(
        blob_id=upload.blob_id,
        multipart=parts,
        blob_ids=[upload.blob_id],
        multiparts=api_pb2.MultiPartUploadList(items=[parts]),
    )
