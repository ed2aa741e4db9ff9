"""Mounts by their RPC handlers, on a real store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from modal_proto import api_pb2
from tests.unit.feature_home import Home, run, sha256

from homeport.kernel.errors import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
    UnimplementedError,
)
from homeport.link.messages import ManifestFile
from homeport.mounts.rpc import MountRpc

ANONYMOUS = api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP
GLOBAL = api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL


def rpc_of(home: Home) -> MountRpc:
    return MountRpc(home.mounts, home.environments)


async def put(home: Home, data: bytes) -> str:
    request = api_pb2.MountPutFileRequest(sha256_hex=sha256(data), data=data)
    assert (await rpc_of(home).MountPutFile(request, home.context())).exists
    return sha256(data)


def creation(files: dict[str, str], **options: object) -> api_pb2.MountGetOrCreateRequest:
    listed = [
        api_pb2.MountFile(filename=name, sha256_hex=content, mode=0o100755)
        for name, content in files.items()
    ]
    options = {"object_creation_type": ANONYMOUS, "app_id": "ap-1", **options}
    return api_pb2.MountGetOrCreateRequest(files=listed, **options)  # type: ignore[arg-type]


async def create(home: Home, files: dict[str, str], **options: object) -> tuple[str, str]:
    answer = await rpc_of(home).MountGetOrCreate(creation(files, **options), home.context())
    return answer.mount_id, answer.handle_metadata.content_checksum_sha256_hex


def test_upload_then_exists(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        rpc = rpc_of(home)
        hashes = [sha256(b"one"), sha256(b"two"), sha256(b"")]
        check = api_pb2.MountBatchedCheckExistenceRequest(sha256_hex_hashes=hashes)
        answer = await rpc.MountBatchedCheckExistence(check, home.context())
        assert list(answer.missing_sha256_hex_hashes) == hashes
        probe = api_pb2.MountPutFileRequest(sha256_hex=hashes[0])
        assert not (await rpc.MountPutFile(probe, home.context())).exists
        await put(home, b"one")
        await put(home, b"")
        answer = await rpc.MountBatchedCheckExistence(check, home.context())
        assert list(answer.missing_sha256_hex_hashes) == [hashes[1]]
        assert answer.HasField("checked_at")
        assert (await rpc.MountPutFile(probe, home.context())).exists

    run(tmp_path, scenario)


def test_a_content_under_another_hash_is_refused(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        request = api_pb2.MountPutFileRequest(sha256_hex=sha256(b"one"), data=b"two")
        with pytest.raises(InvalidError, match=sha256(b"two")):
            await rpc_of(home).MountPutFile(request, home.context())
        assert not await home.mounts.has_file(sha256(b"one"))

    run(tmp_path, scenario)


def test_an_uploaded_blob_becomes_a_file(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        blob_id = await home.blobs.write(b"big")
        request = api_pb2.MountPutFileRequest(sha256_hex=sha256(b"big"), data_blob_id=blob_id)
        assert (await rpc_of(home).MountPutFile(request, home.context())).exists
        request.sha256_hex = sha256(b"small")
        with pytest.raises(InvalidError):
            await rpc_of(home).MountPutFile(request, home.context())
        request.data_blob_id = "bl-unknown"
        with pytest.raises(NotFoundError):
            await rpc_of(home).MountPutFile(request, home.context())

    run(tmp_path, scenario)


def test_the_same_files_are_the_same_mount(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        one, two = await put(home, b"one"), await put(home, b"2")
        mount_id, digest = await create(home, {"/root/b.py": one, "/root/a//x.py": two})
        assert mount_id.startswith("mo-")
        again = await create(home, {"/root/a/x.py": two, "/root/b.py": one}, app_id="ap-2")
        assert again == (mount_id, digest)
        assert (await create(home, {"/root/b.py": two}))[0] != mount_id
        assert await home.mounts.digest(mount_id) == digest
        expected = [
            ManifestFile("/root/a/x.py", two, 0o755, 1),
            ManifestFile("/root/b.py", one, 0o755, 3),
        ]
        assert await home.mounts.manifest(digest) == expected
        data = await home.mounts.manifest_data(digest)
        assert sha256(data) == digest
        assert msgspec.msgpack.decode(data, type=list[ManifestFile]) == expected
        assert await home.mounts.contents() >= {one, two}

    run(tmp_path, scenario)


def test_a_mount_survives_a_restart(tmp_path: Path) -> None:
    found: tuple[str, str] = ("", "")

    async def before(home: Home) -> None:
        nonlocal found
        found = await create(home, {"/a": await put(home, b"a")})

    async def after(home: Home) -> None:
        assert await home.mounts.digest(found[0]) == found[1]
        assert [file.name for file in await home.mounts.manifest(found[1])] == ["/a"]

    run(tmp_path, before)
    run(tmp_path, after)


@pytest.mark.parametrize("name", ["", "/", "a.py", "/root/../etc/passwd", "/a\0b"])
def test_bad_file_names_are_refused(tmp_path: Path, name: str) -> None:
    async def scenario(home: Home) -> None:
        with pytest.raises(InvalidError, match="not an absolute file name"):
            await create(home, {name: await put(home, b"x")})

    run(tmp_path, scenario)


def test_a_missing_content_is_named(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        with pytest.raises(InvalidError, match=r"/root/gone\.py"):
            await create(home, {"/root/gone.py": sha256(b"never sent")})
        with pytest.raises(NotFoundError):
            await home.mounts.digest("mo-unknown")

    run(tmp_path, scenario)


def test_named_mounts(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        one, two = {"/x": await put(home, b"1")}, {"/x": await put(home, b"2")}
        named = {"deployment_name": "shared", "app_id": ""}
        lookup = {**named, "object_creation_type": 0}
        fresh = {**named, "object_creation_type": 2}
        keep = {**named, "object_creation_type": 1}
        with pytest.raises(NotFoundError, match="'shared'"):
            await create(home, {}, **lookup)
        first = await create(home, one, **fresh)
        assert await create(home, {}, **lookup) == first
        assert await create(home, two, **keep) == first
        with pytest.raises(AlreadyExistsError):
            await create(home, two, **fresh)
        with pytest.raises(UnimplementedError):
            await create(home, two, **{**named, "object_creation_type": 3})
        await home.environments.create("other")
        with pytest.raises(NotFoundError):
            await create(home, {}, **lookup, environment_name="other")

    run(tmp_path, scenario)


def test_the_client_mount_is_made_once_for_all_who_ask(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        options: dict[str, object] = {
            "deployment_name": "modal-client-mount-1.6.4",
            "namespace": GLOBAL,
            "object_creation_type": 0,
            "app_id": "",
        }
        found = await asyncio.gather(*(create(home, {}, **options) for _ in range(20)))
        assert len(set(found)) == 1
        assert home.global_mounts.asked == ["/pkg/modal/1.6.4.py"]
        (file,) = await home.mounts.manifest(found[0][1])
        assert file.name == "/pkg/modal/1.6.4.py"
        assert await home.mounts.client_digest("1.6.4") == found[0][1]
        with pytest.raises(NotFoundError, match="python-build-standalone"):
            await create(home, {}, **{**options, "deployment_name": "another-mount.1"})

    run(tmp_path, scenario)


def test_dependencies_are_made_again_after_a_failure(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.global_mounts.failing = True
        results = await asyncio.gather(
            *(home.mounts.deps_digest("2025.06", "3.11") for _ in range(3)),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [RuntimeError] * 3
        assert len(home.global_mounts.asked) == 1
        home.global_mounts.failing = False
        digests = await asyncio.gather(
            *(home.mounts.deps_digest("2025.06", "3.11") for _ in range(3)),
            home.mounts.deps_digest("2025.06", "3.12"),
        )
        assert len(set(digests)) == 2
        assert len(home.global_mounts.asked) == 3

    run(tmp_path, scenario)


def test_one_who_gives_up_does_not_stop_the_others(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        first = asyncio.create_task(home.mounts.deps_digest("2025.06", "3.11"))
        second = asyncio.create_task(home.mounts.deps_digest("2025.06", "3.11"))
        await asyncio.sleep(0)
        first.cancel()
        assert len(await second) == 64

    run(tmp_path, scenario)
