"""A program with the official client: moves payloads of all kinds and says what came back.

Run by ``test_real_client.py``; the server's URL is in the environment.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import modal
from modal._load_context import LoadContext
from modal._resolver import Resolver
from modal._utils.async_utils import TaskContext
from modal._utils.blob_utils import blob_download, blob_upload, blob_upload_file
from modal.client import _Client
from modal.mount import _Mount
from modal_proto import api_pb2


async def blobs(client: _Client) -> bool:
    data = os.urandom(5_000_000)
    in_memory = await blob_upload(data, client._stub)
    from_file = await blob_upload_file(io.BytesIO(data[:100]), client._stub)
    return (
        await blob_download(in_memory, client._stub) == data
        and await blob_download(from_file, client._stub) == data[:100]
    )


def write_files(folder: Path) -> None:
    (folder / "small.txt").write_text("small")
    (folder / "empty.txt").touch()
    (folder / "large.bin").write_bytes(b"l" * (4 * 1024 * 1024 + 1))


async def mount(client: _Client) -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        mount = _Mount._from_local_dir(folder, remote_path="/data")
        async with TaskContext() as tasks:
            context = LoadContext(
                client=client, environment_name="", app_id="ap-1", task_context=tasks
            )
            await Resolver().load(mount, context)
        return mount.object_id


async def logs(client: _Client) -> str:
    digest = hashlib.sha256()
    entry_id = ""
    while True:
        request = api_pb2.AppGetLogsRequest(app_id="ap-1", timeout=55, last_entry_id=entry_id)
        async for batch in client._stub.AppGetLogs.unary_stream(request):
            entry_id = batch.entry_id or entry_id
            for item in batch.items:
                digest.update(item.data.encode())
            if batch.app_done:
                return digest.hexdigest()


async def secrets() -> dict[str, Any]:
    await modal.Secret.objects.create.aio("db", {"USER": "u", "PASSWORD": "p"})
    secret = modal.Secret.from_name("db", required_keys=["USER"])
    await secret.hydrate.aio()
    listed = await modal.Secret.objects.list.aio()
    missing = modal.Secret.from_name("db", required_keys=["HOST"])
    try:
        await missing.hydrate.aio()
        error = ""
    except modal.exception.NotFoundError as found:
        error = str(found)
    await modal.Secret.objects.delete.aio("db")
    return {"id": secret.object_id, "listed": [item.name for item in listed], "error": error}


async def main() -> None:
    url = os.environ["MODAL_SERVER_URL"]
    async with _Client(url, api_pb2.CLIENT_TYPE_CLIENT, ("ak-1", "as-1")) as client:
        result = {
            "blobs": await blobs(client),
            "mount": await mount(client),
            "logs": await logs(client),
        }
    result["secrets"] = await secrets()
    json.dump(result, sys.stdout)


asyncio.run(main())
