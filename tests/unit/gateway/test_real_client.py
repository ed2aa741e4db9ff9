"""The official client against the data features, over one real port."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from tests.unit.feature_home import Home, run

from homeport.blobs.rpc import BlobRpc
from homeport.gateway.http import create_http_app
from homeport.gateway.listener import Listener
from homeport.link.messages import LogEntry
from homeport.logs.model import TaskRef
from homeport.logs.rpc import LogRpc
from homeport.mounts.rpc import MountRpc
from homeport.rpc.auth import Authenticator
from homeport.rpc.registry import Registry
from homeport.secrets.rpc import SecretRpc
from homeport.transport.grpc_server import GrpcServer

PROGRAM = Path(__file__).with_name("real_client.py")


class AnyToken:
    def verify(self, token_id: str, secret: str) -> bool:
        return True


class AnyApp:
    def has_app(self, app_id: str) -> bool:
        return True

    async def task_of_sandbox(self, sandbox_id: str) -> str:
        raise NotImplementedError

    async def find_task(self, task_id: str) -> TaskRef | None:
        return None


@asynccontextmanager
async def server(home: Home) -> AsyncIterator[int]:
    registry = Registry(
        [
            BlobRpc(home.blobs),
            LogRpc(home.logs, AnyApp()),
            MountRpc(home.mounts, home.environments),
            SecretRpc(home.secrets, home.environments),
        ],
        authenticator=Authenticator(AnyToken()),
    )
    grpc = GrpcServer(registry)
    app = create_http_app(
        home.blobs,
        home.mounts,
        home.files,
        home.volumes,
        verify_node=lambda token: False,
        pages=home.pages,
    )
    runner = web.AppRunner(app)
    await runner.setup()
    http = runner.server
    assert http is not None
    listener = Listener("127.0.0.1", 0, grpc=grpc.protocol_factory, http=http, link=lambda _: None)
    await listener.start()
    try:
        yield listener.port
    finally:
        await listener.stop()
        await grpc.stop(1.0)
        await registry.stop()
        await runner.cleanup()


async def client(url: str) -> dict[str, object]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {
        "MODAL_SERVER_URL": url,
        "MODAL_TOKEN_ID": "ak-1",
        "MODAL_TOKEN_SECRET": "as-1",
        "MODAL_CONFIG_PATH": os.devnull,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        PROGRAM,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


def test_the_client_moves_payloads_mounts_logs_and_secrets(tmp_path: Path) -> None:
    texts = [f"line {number}\n" for number in range(20_000)]

    async def scenario(home: Home) -> None:
        home.logs.reopen("ap-1")
        for text in texts:
            home.logs.append("ap-1", "ta-1", "fu-1", [LogEntry(1, 10**9, text)])
        home.logs.finish("ap-1")
        async with server(home) as port:
            result = await client(f"http://127.0.0.1:{port}")
        assert result["blobs"] is True
        digest = await home.mounts.digest(str(result["mount"]))
        manifest = await home.mounts.manifest(digest)
        assert [(file.name, file.size) for file in manifest] == [
            ("/data/empty.txt", 0),
            ("/data/large.bin", 4 * 1024 * 1024 + 1),
            ("/data/small.txt", 5),
        ]
        assert result["logs"] == hashlib.sha256("".join(texts).encode()).hexdigest()
        secrets = result["secrets"]
        assert isinstance(secrets, dict)
        assert secrets["id"].startswith("st-")
        assert secrets["listed"] == ["db"]
        assert "HOST" in secrets["error"]

    run(tmp_path, scenario)
