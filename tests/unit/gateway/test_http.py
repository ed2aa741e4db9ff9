"""The HTTP side over a real socket."""

from __future__ import annotations

import os
from pathlib import Path

import aiohttp
import msgspec
from tests.unit.feature_home import NODE_TOKEN, Home, run, serve, sha256

from homeport.gateway.pages import AppPage, FunctionLine, LogLine, TaskLine, render
from homeport.link.messages import ManifestFile
from homeport.mounts.model import RequestedFile

NODE = {"Authorization": f"Bearer {NODE_TOKEN}"}


def page(**options: object) -> AppPage:
    values: dict[str, object] = {
        "app_id": "ap-1",
        "name": "<b>bold</b>",
        "state": "deployed",
        "environment": "main",
        "created_at": 0.0,
        "is_live": True,
        "functions": [FunctionLine("f<i>", 3, 2, 1, "http://x.test/?a=1&b=2")],
        "tasks": [TaskLine("ta-1", "f", "running", 1.0)],
        "logs": [LogLine(1.0, "stdout", "<script>alert(1)</script>\n")],
        **options,
    }
    return AppPage(**values)  # type: ignore[arg-type]


def test_health(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        async with (
            serve(home) as url,
            aiohttp.ClientSession() as session,
            session.get(f"{url}/healthz") as response,
        ):
            assert response.status == 200
            assert await response.json() == {"status": "ok", "version": "test"}

    run(tmp_path, scenario)


def test_nodes_fetch_manifests_and_files(tmp_path: Path) -> None:
    data = os.urandom(2_000_000)

    async def scenario(home: Home) -> None:
        content = await home.files.put_bytes(data)
        mount = await home.mounts.create([RequestedFile("/big", content, 0o644)])
        async with serve(home) as url, aiohttp.ClientSession(headers=NODE) as session:
            async with session.get(f"{url}/_node/mounts/{mount.digest}") as response:
                body = await response.read()
                assert sha256(body) == mount.digest
                manifest = msgspec.msgpack.decode(body, type=list[ManifestFile])
                assert manifest == [ManifestFile("/big", content, 0o644, len(data))]
            async with session.get(f"{url}/_node/files/{content}") as response:
                assert response.status == 200
                assert await response.read() == data
            for path, status in (
                (f"/_node/files/{'0' * 64}", 404),
                ("/_node/files/..%2f..%2fhomeport.db", 400),
                (f"/_node/mounts/{'0' * 64}", 404),
            ):
                async with session.get(url + path) as response:
                    assert response.status == status, path

    run(tmp_path, scenario)


def test_nodes_need_the_token(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        content = await home.files.put_bytes(b"x")
        async with serve(home) as url, aiohttp.ClientSession() as session:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": NODE_TOKEN}):
                for path in (f"/_node/files/{content}", "/_node/mounts/x"):
                    async with session.get(url + path, headers=headers) as response:
                        assert response.status == 401

    run(tmp_path, scenario)


def test_the_page_of_an_app(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.pages.known["ap-1"] = page()
        async with serve(home) as url, aiohttp.ClientSession() as session:
            async with session.get(f"{url}/apps/ap-1") as response:
                assert response.status == 200
                assert response.content_type == "text/html"
                assert response.headers["Cache-Control"] == "no-store"
                text = await response.text()
                assert "&lt;b&gt;bold&lt;/b&gt;" in text
                assert "<script>" not in text
                assert "http://x.test/?a=1&amp;b=2" in text
            async with session.get(f"{url}/apps/ap-1/logs") as response:
                assert response.content_type == "text/plain"
                assert await response.text() == "<script>alert(1)</script>\n"
            async with session.get(f"{url}/apps/ap-2") as response:
                assert response.status == 404

    run(tmp_path, scenario)


def test_the_page_of_an_idle_app_says_so() -> None:
    text = render(page(functions=[], tasks=[], logs=[], is_live=False))
    assert "No functions." in text
    assert "No containers." in text
    assert "Nothing has been printed yet." in text
    assert "http-equiv" not in text
    assert "javascript:" not in render(page(functions=[FunctionLine("f", web_url="javascript:x")]))


def test_unknown_paths(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        async with serve(home) as url, aiohttp.ClientSession() as session:
            async with session.get(f"{url}/<x>") as response:
                assert (response.status, response.content_type) == (404, "text/plain")
            headers = {"Accept": "text/html,*/*"}
            async with session.get(f"{url}/%3Cx%3E", headers=headers) as response:
                assert (response.status, response.content_type) == (404, "text/html")
                assert "/&lt;x&gt;" in await response.text()
            async with session.post(f"{url}/healthz") as response:
                assert response.status == 405

    run(tmp_path, scenario)


def test_a_defect_is_a_bare_500(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        async def fail(app_id: str, *, log_lines: int) -> AppPage | None:
            raise ValueError("a detail of ours")

        home.pages.page = fail  # type: ignore[method-assign]
        async with (
            serve(home) as url,
            aiohttp.ClientSession() as session,
            session.get(f"{url}/apps/ap-1") as response,
        ):
            assert response.status == 500
            assert "a detail of ours" not in await response.text()

    run(tmp_path, scenario)
