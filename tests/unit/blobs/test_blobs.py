"""Blobs over real HTTP, announced by the RPC handlers."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import aiohttp
import pytest
from modal_proto import api_pb2
from tests.unit.feature_home import Home, run, serve, sha256

from homeport.blobs import model
from homeport.blobs.model import part_size, single_part_allowed
from homeport.blobs.rpc import BlobRpc
from homeport.kernel.errors import InvalidError, NotFoundError


def announce(data: bytes) -> api_pb2.BlobCreateRequest:
    return api_pb2.BlobCreateRequest(
        content_md5=base64.b64encode(hashlib.md5(data).digest()).decode(),
        content_sha256_base64=base64.b64encode(hashlib.sha256(data).digest()).decode(),
        content_length=len(data),
    )


def completion(etags: list[str]) -> str:
    parts = "\n".join(
        f'<Part>\n<PartNumber>{number}</PartNumber>\n<ETag>"{etag}"</ETag>\n</Part>'
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>\n{parts}\n</CompleteMultipartUpload>"


async def upload(home: Home, session: aiohttp.ClientSession, data: bytes) -> str:
    created = await BlobRpc(home.blobs).BlobCreate(announce(data), home.context())
    async with session.put(created.upload_url, data=data) as response:
        assert response.status == 200
    return created.blob_id


def test_a_single_part_upload_and_its_download(tmp_path: Path) -> None:
    data = os.urandom(300_000)

    async def scenario(home: Home) -> None:
        rpc = BlobRpc(home.blobs)
        async with serve(home), aiohttp.ClientSession() as session:
            created = await rpc.BlobCreate(announce(data), home.context())
            assert created.WhichOneof("upload_types_oneof") == "upload_urls"
            assert created.WhichOneof("upload_type_oneof") == "upload_url"
            assert list(created.blob_ids) == [created.blob_id]
            assert list(created.upload_urls.items) == [created.upload_url]
            for _ in range(2):  # a repeated upload is the same upload
                async with session.put(created.upload_url, data=data) as response:
                    assert response.status == 200
                    assert response.headers["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
            request = api_pb2.BlobGetRequest(blob_id=created.blob_id)
            url = (await rpc.BlobGet(request, home.context())).download_url
            async with session.get(url) as response:
                assert response.status == 200
                assert await response.read() == data
            async with session.get(url, headers={"Range": "bytes=10-19"}) as response:
                assert response.status == 206
                assert await response.read() == data[10:20]
            async with session.head(url) as response:
                assert response.content_length == len(data)
        assert await home.blobs.read(created.blob_id) == data

    run(tmp_path, scenario)


def test_a_dns_name_gets_a_one_part_multipart_upload(tmp_path: Path) -> None:
    data = os.urandom(100_000)

    async def scenario(home: Home) -> None:
        rpc = BlobRpc(home.blobs)
        async with serve(home) as url, aiohttp.ClientSession() as session:
            home.url = "http://blobs.example.com"
            created = await rpc.BlobCreate(announce(data), home.context())
            assert created.WhichOneof("upload_types_oneof") == "multiparts"
            assert created.WhichOneof("upload_type_oneof") == "multipart"
            parts = created.multiparts.items[0]
            assert parts == created.multipart
            assert parts.part_length == len(data)
            (part_url,) = [part.replace(home.url, url) for part in parts.upload_urls]
            async with session.put(part_url, data=data) as response:
                assert response.status == 200
                etag = response.headers["ETag"].strip('"')
            end = parts.completion_url.replace(home.url, url)
            async with session.post(end, data=completion([etag])) as response:
                assert response.status == 200
                expected = hashlib.md5(bytes.fromhex(etag)).hexdigest() + "-1"
                assert expected in await response.text()
        assert await home.blobs.read(created.blob_id) == data

    run(tmp_path, scenario)


def test_parts_arrive_in_any_order_and_survive_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeport.blobs.model.SINGLE_BYTES_MAX", 1000)
    monkeypatch.setattr("homeport.blobs.model.PART_BYTES", 400)
    data = os.urandom(1_001)
    parts: api_pb2.MultiPartUpload

    async def scenario(home: Home) -> None:
        nonlocal parts
        home.url = "http://blobs.example.com"
        created = await BlobRpc(home.blobs).BlobCreate(announce(data), home.context())
        parts = created.multiparts.items[0]
        assert parts.part_length == 400
        assert len(parts.upload_urls) == 3
        async with serve(home) as url, aiohttp.ClientSession() as session:
            for number in (2, 0):
                await put_part(session, url, number, data[number * 400 : (number + 1) * 400])
            end = parts.completion_url.replace("http://blobs.example.com", url)
            etags = [hashlib.md5(data[start : start + 400]).hexdigest() for start in (0, 400, 800)]
            async with session.post(end, data=completion(etags)) as response:
                assert response.status == 409
                assert "part 2" in await response.text()

    async def put_part(
        session: aiohttp.ClientSession, url: str, number: int, piece: bytes, status: int = 200
    ) -> None:
        part_url = parts.upload_urls[number].replace("http://blobs.example.com", url)
        async with session.put(part_url, data=piece) as response:
            assert response.status == status
            if status == 200:
                assert response.headers["ETag"] == f'"{hashlib.md5(piece).hexdigest()}"'

    async def after_restart(home: Home) -> None:
        async with serve(home) as url, aiohttp.ClientSession() as session:
            await put_part(session, url, 1, b"too short", 400)
            await put_part(session, url, 1, bytes(400))  # a first try, damaged
            await put_part(session, url, 1, data[400:800])
            end = parts.completion_url.replace("http://blobs.example.com", url)
            etags = [hashlib.md5(data[start : start + 400]).hexdigest() for start in (0, 400, 800)]
            async with session.post(end, data=completion([etags[0], etags[2], etags[1]])) as wrong:
                assert wrong.status == 400
            for _ in range(2):  # asked again it answers the same
                async with session.post(end, data=completion(etags)) as response:
                    assert response.status == 200
                    joined = b"".join(bytes.fromhex(etag) for etag in etags)
                    assert hashlib.md5(joined).hexdigest() + "-3" in await response.text()
        assert await home.files.read(sha256(data)) == data
        assert os.listdir(home.files.root / "uploads") == []

    run(tmp_path, scenario)
    run(tmp_path, after_restart)


@pytest.mark.parametrize(
    ("body", "announced"),
    [(b"other", b"right"), (b"righ", b"right"), (b"right and more", b"right")],
)
def test_other_bytes_than_announced_are_refused(
    tmp_path: Path, body: bytes, announced: bytes
) -> None:
    async def scenario(home: Home) -> None:
        async with serve(home), aiohttp.ClientSession() as session:
            created = await BlobRpc(home.blobs).BlobCreate(announce(announced), home.context())

            async def chunks():
                yield body

            async with session.put(created.upload_url, data=chunks()) as response:
                assert response.status == 400
            async with session.put(created.upload_url, data=body) as response:
                assert response.status == 400
                if len(body) == len(announced):
                    assert "The Content-MD5 you specified did not match" in await response.text()
        with pytest.raises(NotFoundError):
            await home.blobs.read(created.blob_id)

    run(tmp_path, scenario)


def test_a_url_is_good_for_one_thing_until_it_expires(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        async with serve(home) as base, aiohttp.ClientSession() as session:
            created = await BlobRpc(home.blobs).BlobCreate(announce(b"x"), home.context())
            other = await BlobRpc(home.blobs).BlobCreate(announce(b"x"), home.context())
            token = created.upload_url.partition("?t=")[2]
            other_first = "B" if token[0] == "A" else "A"
            for method, url, status in (
                ("PUT", f"{base}/blob/{other.blob_id}?t={token}", 404),
                ("GET", created.upload_url, 404),
                ("POST", created.upload_url, 404),
                ("PUT", f"{base}/blob/{created.blob_id}", 403),
                ("PUT", f"{base}/blob/{created.blob_id}?t=%00%ff", 403),
                ("PUT", f"{base}/blob/{created.blob_id}?t={other_first}{token[1:]}", 403),
                ("PUT", f"{base}/blob/{created.blob_id}?t={token}AAAA", 403),
            ):
                async with session.request(method, url, data=b"x") as response:
                    assert response.status == status, (method, url)
            home.clock.offset = 86400.0 + 1
            async with session.put(created.upload_url, data=b"x") as response:
                assert response.status == 403
                assert "expired" in await response.text()

    run(tmp_path, scenario)


def test_an_unknown_or_unfinished_blob_is_not_found(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        rpc = BlobRpc(home.blobs)
        created = await rpc.BlobCreate(announce(b"x"), home.context())
        for blob_id in ("bl-1", created.blob_id):
            with pytest.raises(NotFoundError):
                await rpc.BlobGet(api_pb2.BlobGetRequest(blob_id=blob_id), home.context())
        with pytest.raises(InvalidError, match="content_md5"):
            await rpc.BlobCreate(
                api_pb2.BlobCreateRequest(content_sha256_base64="A" * 43 + "="), home.context()
            )

    run(tmp_path, scenario)


def test_many_blobs_are_asked_for_at_once(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        there = [await home.blobs.write(bytes([number])) for number in range(3)]
        await home.blobs.require([])
        await home.blobs.require([*there, there[0]])
        others = {f"bl-{number}" for number in range(100_000)}
        with pytest.raises(NotFoundError, match="blob bl-0 does not exist"):
            await home.blobs.require({*there, *others})

    run(tmp_path, scenario)


def test_blobs_of_other_features_expire(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        blob_id = await home.blobs.write(b"result")
        assert await home.blobs.read(blob_id) == b"result"
        assert await home.blobs.contents() == {sha256(b"result")}
        assert await home.blobs.prune() == 0
        home.clock.offset = 8 * 86400.0
        assert await home.blobs.prune() == 1
        with pytest.raises(NotFoundError):
            await home.blobs.read(blob_id)

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("host", "version", "allowed"),
    [
        ("localhost", "1.0.5", True),
        ("127.0.0.1", "1.0.5", True),
        ("127.0.0.2", "1.3.5", False),
        ("127.0.0.2", "1.4.3", True),
        ("10.1.2.3", "1.6.4", True),
        ("10.1.2.3", "1.3.5", False),
        ("172.16.0.1", "1.4.3", True),
        ("192.168.1.1", "1.6.4.dev3", True),
        ("100.64.0.1", "1.6.4", False),
        ("8.8.8.8", "1.6.4", False),
        ("::1", "1.6.4", False),
        ("server", "1.6.4", False),
        ("10.1.2.3", "", False),
    ],
)
def test_hosts_that_clients_accept_for_single_parts(host: str, version: str, allowed: bool) -> None:
    assert single_part_allowed(host, version) is allowed


@pytest.mark.parametrize("size", [0, 1, 1 << 30, (1 << 30) + 1, 1 << 40])
def test_parts_are_few_and_cover_the_blob(size: int) -> None:
    grant = model.Grant("complete", "bl-1", 0.0, size, part_size=part_size(size))
    assert grant.parts <= model.PARTS_MAX
    assert (grant.parts - 1) * grant.part_size <= size <= grant.parts * grant.part_size
    assert (grant.parts == 1) is (size <= model.SINGLE_BYTES_MAX)
