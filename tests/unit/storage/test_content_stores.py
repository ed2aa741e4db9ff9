"""Stores of contents: the same in a folder and in a bucket of a server that speaks S3."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.conformance.harness.s3 import ObjectStore
from tests.unit.feature_home import SettableClock, sha256

from homeport.kernel.errors import (
    ConflictError,
    InternalError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from homeport.settings import Settings
from homeport.storage.bucket import PART_BYTES, Bucket
from homeport.storage.buckets import BucketStore
from homeport.storage.catalogue import Catalogue
from homeport.storage.contents import ContentMismatchError, ContentStore
from homeport.storage.database import Database
from homeport.storage.inspection import inspect
from homeport.storage.opening import open_contents

BUCKET = "contents"
DAY_S = 86400.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("s3")) as store:
        store.create(BUCKET)
        yield store


@pytest.fixture(params=["folder", "bucket"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "folder":
        return Settings(home=tmp_path)
    return of_bucket(request.getfixturevalue("store"), tmp_path)


@pytest.fixture
def bucket_settings(store: ObjectStore, tmp_path: Path) -> Settings:
    return of_bucket(store, tmp_path)


def of_bucket(store: ObjectStore, home: Path) -> Settings:
    return Settings(
        home=home,
        blob_store=f"s3://{BUCKET}/{sha256(os.fspath(home).encode())[:12]}",
        blob_store_options=options(store.url),
    )


def options(url: str) -> dict[str, str]:
    return {
        "endpoint": url,
        "region": "us-east-1",
        "access_key_id": "key",
        "secret_access_key": "secret",
    }


def bucket_of(settings: Settings) -> Bucket:
    return Bucket(settings.blob_store, settings.blob_store_options, retry_s=1.0)


@asynccontextmanager
async def opened(
    settings: Settings, clock: SettableClock | None = None, *, key: bytes = b"k" * 32
) -> AsyncIterator[ContentStore]:
    clock = clock or SettableClock()
    settings.home.mkdir(exist_ok=True)
    database = Database.sqlite(settings.database_path)
    await database.start()
    files = open_contents(settings, database, clock, key=key)
    try:
        files.prepare()
        await files.start()
        yield files
    finally:
        files.close()
        await database.stop()


def run(settings: Settings, scenario: Callable[[ContentStore], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(settings) as files:
            await scenario(files)

    asyncio.run(main())


async def pieces_of(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


# ── every store ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, 70_000, 5_000_000, PART_BYTES + 3])
def test_what_is_stored_is_read(settings: Settings, size: int) -> None:
    data = os.urandom(size)

    async def scenario(files: ContentStore) -> None:
        name = sha256(data)
        assert await files.put_bytes(data) == name
        assert await files.has(name)
        assert await files.sizes([name, sha256(b"other")]) == {name: size}
        assert await files.read(name) == data
        assert b"".join([piece async for piece in files.stream(name)]) == data
        with await files.open(name) as file:
            assert file.read() == data

    run(settings, scenario)


def test_parts_end_where_the_content_ends(settings: Settings) -> None:
    async def scenario(files: ContentStore) -> None:
        name = await files.put_bytes(b"0123456789")
        assert await files.part(name, 2, 3) == b"234"
        assert await files.part(name, 8, 100) == b"89"
        assert await files.part(name, 10, 5) == b""

    run(settings, scenario)


def test_a_stream_is_hashed_while_it_is_stored(settings: Settings) -> None:
    data = os.urandom(3_000_000)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()

    async def scenario(files: ContentStore) -> None:
        stored = await files.put_stream(pieces_of(data), expect=sha256(data), size_max=len(data))
        assert stored == (sha256(data), md5, len(data))
        assert await files.read(sha256(data)) == data

    run(settings, scenario)


def test_nothing_is_kept_of_what_does_not_fit(settings: Settings) -> None:
    wrong = sha256(b"wrong")

    async def scenario(files: ContentStore) -> None:
        with pytest.raises(ContentMismatchError):
            await files.put_bytes(b"right", expect=wrong)
        with pytest.raises(ContentMismatchError):
            await files.put_stream(pieces_of(b"right"), expect=wrong)
        with pytest.raises(InvalidError, match="more than the announced 3 bytes"):
            await files.put_stream(pieces_of(b"right"), size_max=3)
        assert await files.sizes([wrong, sha256(b"right")]) == {}
        with pytest.raises(NotFoundError):
            await files.read(wrong)
        with pytest.raises(InvalidError, match="not a SHA-256"):
            await files.has("../secret")

    run(settings, scenario)
    assert not list((settings.blob_root / "tmp").iterdir())


def test_files_are_copied_or_taken(settings: Settings, tmp_path: Path) -> None:
    copied, taken = tmp_path / "copied", settings.blob_root / "taken"

    async def scenario(files: ContentStore) -> None:
        copied.write_bytes(b"copied")
        taken.write_bytes(b"taken")
        assert await files.put_file(copied) == sha256(b"copied")
        assert await files.adopt_file(taken, expect=sha256(b"taken")) == sha256(b"taken")
        assert await files.read(sha256(b"copied")) == b"copied"
        assert await files.read(sha256(b"taken")) == b"taken"

    run(settings, scenario)
    assert copied.exists()
    assert not taken.exists()


def test_contents_outlive_the_process(settings: Settings) -> None:
    async def store_it(files: ContentStore) -> None:
        await files.put_bytes(b"kept")

    async def find_it(files: ContentStore) -> None:
        assert await files.read(sha256(b"kept")) == b"kept"

    run(settings, store_it)
    run(settings, find_it)


def test_many_at_once_and_the_same_twice(settings: Settings) -> None:
    async def scenario(files: ContentStore) -> None:
        datas = [f"content {number % 40}".encode() for number in range(80)]
        names = await asyncio.gather(*map(files.put_bytes, datas))
        assert names == [*map(sha256, datas)]
        assert len(await files.sizes(names)) == 40

    run(settings, scenario)


def test_contents_can_be_inspected_from_beside(settings: Settings) -> None:
    data = os.urandom(PART_BYTES + 1)

    async def scenario(files: ContentStore) -> None:
        await files.put_bytes(data)

    run(settings, scenario)
    inspection = inspect(settings)
    assert inspection.size(sha256(data)) == len(data)
    assert inspection.digest(sha256(data)) == sha256(data)
    assert inspection.size(sha256(b"nothing")) is None


# ── buckets ─────────────────────────────────────────────────────────────────────────────────────


def test_only_what_is_unused_is_swept(bucket_settings: Settings) -> None:
    async def main() -> None:
        clock = SettableClock()
        async with opened(bucket_settings, clock) as files:
            live, used, unused = [await files.put_bytes(name) for name in (b"a", b"b", b"c")]
            assert await files.sweep({live}) == 0  # all were used within the grace period
            clock.offset = 2 * DAY_S
            assert await files.has(used)
            assert await files.sweep({live}) == 1
            assert set(await files.sizes([live, used, unused])) == {live, used}
            assert await files.read(used) == b"b"
            assert {name[3:] for name in bucket_of(bucket_settings).sizes()} >= {live, used}
            assert f"{unused[:2]}/{unused}" not in bucket_of(bucket_settings).sizes()
            await files.put_bytes(b"c")
            assert await files.read(unused) == b"c"

    asyncio.run(main())


def test_what_a_crash_left_is_swept(bucket_settings: Settings) -> None:
    name = sha256(b"sent, but not recorded")
    place = f"{name[:2]}/{name}"

    async def main() -> None:
        clock = SettableClock()
        async with opened(bucket_settings, clock) as files:
            bucket = bucket_of(bucket_settings)
            await bucket.put(place, b"sent, but not recorded", 22)
            await bucket.put("somebody's own", b"notes", 5)
            assert not await files.has(name)
            assert await files.sweep(set()) == 0  # it may be on its way
            clock.offset = 3 * DAY_S
            assert await files.sweep(set()) == 1
            assert place not in bucket.sizes()
            assert "somebody's own" in bucket.sizes()

    asyncio.run(main())


def test_what_was_deleted_in_the_bucket_is_taken_again(bucket_settings: Settings) -> None:
    async def scenario(files: ContentStore) -> None:
        name = await files.put_bytes(b"deleted by somebody")
        await bucket_of(bucket_settings).delete([f"{name[:2]}/{name}"])
        with pytest.raises(NotFoundError):
            await files.read(name)
        await files.put_bytes(b"deleted by somebody")
        assert await files.read(name) == b"deleted by somebody"

    run(bucket_settings, scenario)


def test_damage_is_noticed_before_the_last_byte(bucket_settings: Settings) -> None:
    data = os.urandom(9_000_000)
    name = sha256(data)

    async def scenario(files: ContentStore) -> None:
        await files.put_bytes(data)
        damaged = data[:-1] + bytes([data[-1] ^ 1])
        await bucket_of(bucket_settings).put(f"{name[:2]}/{name}", damaged, len(damaged))
        received: list[int] = []

        async def receive() -> None:
            async for piece in files.stream(name):
                received.append(len(piece))

        with pytest.raises(InternalError, match="is damaged"):
            await receive()
        assert 0 < sum(received) < len(data)

    run(bucket_settings, scenario)


def test_a_bucket_belongs_to_one_installation(bucket_settings: Settings, tmp_path: Path) -> None:
    async def scenario(files: ContentStore) -> None:
        await files.put_bytes(b"mine")

    async def others() -> None:
        home = tmp_path / "other"
        settings = Settings(
            home=home,
            blob_store=bucket_settings.blob_store,
            blob_store_options=bucket_settings.blob_store_options,
        )
        async with opened(settings, key=b"o" * 32):
            pass

    run(bucket_settings, scenario)
    with pytest.raises(ConflictError, match="belongs to another Homeport installation"):
        asyncio.run(others())


def test_contents_of_the_folder_move_into_the_bucket_and_stay_there(
    bucket_settings: Settings, store: ObjectStore
) -> None:
    folder = Settings(home=bucket_settings.home)

    async def before(files: ContentStore) -> None:
        for number in range(40):
            await files.put_bytes(b"from the folder %d" % number)

    async def after(files: ContentStore) -> None:
        for number in range(40):
            data = b"from the folder %d" % number
            assert await files.read(sha256(data)) == data

    run(folder, before)
    run(bucket_settings, after)
    assert not list(folder.blob_root.glob("??/*"))
    with pytest.raises(ConflictError, match="set blob_store to it again"):
        run(folder, after)
    elsewhere = Settings(
        home=folder.home,
        blob_store=f"s3://{BUCKET}/elsewhere",
        blob_store_options=options(store.url),
    )
    with pytest.raises(ConflictError, match="has none of the 40 contents"):
        run(elsewhere, after)


def test_a_store_that_is_gone_is_said_and_found_again(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def main() -> None:
        clock = SettableClock()
        database = Database.sqlite(tmp_path / "homeport.db")
        await database.start()
        first = ObjectStore(tmp_path_factory.mktemp("s3"))
        with first:
            first.create(BUCKET)
            bucket = Bucket(f"s3://{BUCKET}", options(first.url), retry_s=1.0)
            catalogue = Catalogue(database, clock)
            files = BucketStore(tmp_path / "blobs", bucket, catalogue, clock, owner="me")
            files.prepare()
            await files.start()
        with pytest.raises(UnavailableError, match="see that the store can be reached"):
            await files.put_bytes(b"not while it is away")
        assert not await files.has(sha256(b"not while it is away"))
        with first:
            first.create(BUCKET)
            name = await files.put_bytes(b"but afterwards")
            assert await files.read(name) == b"but afterwards"
        files.close()
        await database.stop()

    asyncio.run(main())


REFUSALS = [
    (403, "InvalidAccessKeyId", "refused the Homeport server's credentials"),
    (403, "SignatureDoesNotMatch", "refused the Homeport server's credentials"),
    (404, "NoSuchBucket", "there is no bucket for"),
    (500, "InternalError", "see that the store can be reached"),
]


@pytest.mark.parametrize(("status", "code", "words"), REFUSALS)
def test_refusals_say_what_to_do(status: int, code: str, words: str) -> None:
    from aiohttp import web

    async def main() -> None:
        async def refuse(_request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>")

        runner = web.ServerRunner(web.Server(refuse))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            bucket = Bucket(f"s3://{BUCKET}", options(site.name), retry_s=0.3)
            with pytest.raises(UnavailableError, match=words) as caught:
                await bucket.check()
            assert "\n" not in caught.value.message
        finally:
            await runner.cleanup()

    asyncio.run(main())


def test_no_credentials_at_all(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    bucket = Bucket(f"s3://{BUCKET}", {"endpoint": store.url}, retry_s=0.3)
    with pytest.raises(UnavailableError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        asyncio.run(bucket.check())


@pytest.mark.parametrize("url", ["ftp://host/x", "bucket", "s3://", "file:///tmp"])
def test_other_places_are_refused(url: str) -> None:
    with pytest.raises(InvalidError, match="it has to be s3://"):
        Bucket(url, {})


def test_unknown_options_are_refused_by_name() -> None:
    with pytest.raises(InvalidError, match="endpont"):
        Bucket("s3://bucket", {"endpont": "http://127.0.0.1"})
