"""The least a server can do for Volumes: files in memory, nothing checked, answering at once.

python benchmarks/volume_floor.py      # prints its URL, ends with its stdin
"""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import uvloop
from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from modal_proto import api_pb2

from homeport.transport.dispatch import UNIMPLEMENTED, IncomingCall, StatusError
from homeport.transport.grpc_server import GrpcServer

SERVICE = "/modal.client.ModalClient/"
BLOCK_BYTES = 8 * 1024 * 1024
HEX_DIGITS = 64
EMPTY = Empty()


@dataclass
class File:
    """A file and the names of its contents, each of up to ``part`` bytes."""

    size: int
    contents: list[str]
    part: int


class Floor:
    """Implements ``homeport.transport.dispatch.Dispatcher`` for the RPCs of ``volume_ops``."""

    def __init__(self) -> None:
        self.base = ""
        self._contents: dict[str, bytes] = {}
        self._md5s: dict[str, str] = {}
        self._files: dict[tuple[str, str], File] = {}
        self._methods: dict[str, tuple[Callable[[bytes], Message], Callable[[Any], Any]]] = {
            SERVICE + name: (parse, getattr(self, name)) for name, parse in _REQUESTS.items()
        }

    def is_stream(self, path: str) -> bool | None:
        return False if path in self._methods else None

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        parse, method = self._methods[call.path]
        return (await method(parse(body))).SerializeToString()

    def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        raise StatusError(UNIMPLEMENTED, "the floor has no streams")

    # ── RPCs ────────────────────────────────────────────────────────────────────────────────

    async def VolumeGetOrCreate(self, request: api_pb2.VolumeGetOrCreateRequest) -> Message:
        version = request.version or api_pb2.VOLUME_FS_VERSION_V1
        metadata = api_pb2.VolumeMetadata(version=version, name=request.deployment_name)
        volume_id = f"vo-{version:022d}"
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume_id, version=version, metadata=metadata
        )

    async def MountPutFile(self, request: api_pb2.MountPutFileRequest) -> Message:
        name = request.sha256_hex
        if request.WhichOneof("data_oneof") == "data":
            self._contents[name] = request.data
        elif request.data_blob_id:
            self._contents[name] = self._contents.pop(request.data_blob_id)
        return api_pb2.MountPutFileResponse(exists=name in self._contents)

    async def BlobCreate(self, request: api_pb2.BlobCreateRequest) -> Message:
        blob_id = f"bl-{len(self._md5s):022d}"
        self._md5s[blob_id] = base64.b64decode(request.content_md5).hex()
        url = f"{self.base}/{blob_id}"
        return api_pb2.BlobCreateResponse(
            blob_id=blob_id,
            upload_url=url,
            blob_ids=[blob_id],
            upload_urls=api_pb2.UploadUrlList(items=[url]),
        )

    async def VolumePutFiles(self, request: api_pb2.VolumePutFilesRequest) -> Message:
        for file in request.files:
            size = len(self._contents[file.sha256_hex])
            path = (request.volume_id, file.filename.lstrip("/"))
            self._files[path] = File(size, [file.sha256_hex], size)
        return EMPTY

    async def VolumePutFiles2(self, request: api_pb2.VolumePutFiles2Request) -> Message:
        missing: list[api_pb2.VolumePutFiles2Response.MissingBlock] = []
        for number, file in enumerate(request.files):
            names = [block.contents_sha256.hex() for block in file.blocks]
            for index, name in enumerate(names):
                if name not in self._contents:
                    block = api_pb2.VolumePutFiles2Response.MissingBlock(
                        file_index=number, block_index=index, put_url=f"{self.base}/{name}"
                    )
                    missing.append(block)
            path = (request.volume_id, file.path.lstrip("/"))
            self._files[path] = File(file.size, names, BLOCK_BYTES)
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    async def VolumeGetFile2(self, request: api_pb2.VolumeGetFile2Request) -> Message:
        file = self._files[request.volume_id, request.path.lstrip("/")]
        urls = [
            f"{self.base}/{file.contents[start // max(file.part, 1)]}?start={start % file.part}"
            for start in range(0, file.size, BLOCK_BYTES)
        ]
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=file.size, start=0, len=file.size)

    # ── contents ────────────────────────────────────────────────────────────────────────────

    async def put(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self._contents[name] = await request.read()
        return web.Response(headers={"ETag": f'"{self._md5s.get(name, "")}"'})

    async def get(self, request: web.Request) -> web.Response:
        start = int(request.query["start"])
        name = request.match_info["name"]
        content = self._contents[name]
        headers = {}
        if len(content) <= BLOCK_BYTES and len(name) == HEX_DIGITS:
            # The client hashes the body to check it by this: its own work, whoever the server is.
            digest = base64.b64encode(bytes.fromhex(name)).decode()
            headers["Repr-Digest"] = f"sha-256=:{digest}:"
        return web.Response(body=memoryview(content)[start : start + BLOCK_BYTES], headers=headers)


_REQUESTS: dict[str, Callable[[bytes], Message]] = {
    "BlobCreate": api_pb2.BlobCreateRequest.FromString,
    "MountPutFile": api_pb2.MountPutFileRequest.FromString,
    "VolumeGetFile2": api_pb2.VolumeGetFile2Request.FromString,
    "VolumeGetOrCreate": api_pb2.VolumeGetOrCreateRequest.FromString,
    "VolumePutFiles": api_pb2.VolumePutFilesRequest.FromString,
    "VolumePutFiles2": api_pb2.VolumePutFiles2Request.FromString,
}


async def serve() -> None:
    floor = Floor()
    app = web.Application(client_max_size=2**40)
    app.add_routes([web.put("/{name}", floor.put), web.get("/{name}", floor.get)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    floor.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    server = GrpcServer(floor)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server.protocol_factory, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    listener.close()
    await server.stop(0)
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve())
