"""Volumes by their RPC handlers and by what nodes ask, on a real database."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from modal_proto import api_pb2
from tests.unit.feature_home import Home, run

from homeport.kernel.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
)
from homeport.link.volumes import (
    BLOCK_BYTES,
    DIRECTORY,
    FILE,
    GONE,
    SYMLINK,
    ChangesHead,
    Unframer,
    VolumeCommit,
    VolumeEntry,
)
from homeport.settings import Settings
from homeport.storage.dialects import create_engine
from homeport.storage.inspection import inspect
from homeport.storage.opening import open_reader
from homeport.volumes import fsck
from homeport.volumes.model import TOMBSTONE_S
from homeport.volumes.rpc import VolumeRpc
from homeport.volumes.tree import Tree, volume_files

CREATE, FAIL, EPHEMERAL = 1, 2, 5


def rpc_of(home: Home) -> VolumeRpc:
    return VolumeRpc(home.volume_objects, home.volumes, home.environments)


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def create(home: Home, name: str = "v", kind: int = CREATE, key: str = "") -> str:
    request = api_pb2.VolumeGetOrCreateRequest(
        deployment_name="" if kind == EPHEMERAL else name,
        object_creation_type=kind,  # type: ignore[arg-type]
    )
    context = home.context("VolumeGetOrCreate", key=key)
    return (await rpc_of(home).VolumeGetOrCreate(request, context)).volume_id


async def put(
    home: Home, volume_id: str, files: dict[str, bytes], *, force: bool = True, key: str = ""
) -> list[tuple[int, int]]:
    request = api_pb2.VolumePutFiles2Request(
        volume_id=volume_id, disallow_overwrite_existing_files=not force
    )
    for path, data in files.items():
        await home.files.put_bytes(data)
        file = request.files.add(path=path, size=len(data))
        if data:
            file.blocks.add(contents_sha256=digest(data))
    response = await rpc_of(home).VolumePutFiles2(request, home.context("VolumePutFiles2", key=key))
    return [(block.file_index, block.block_index) for block in response.missing_blocks]


async def paths(home: Home, volume_id: str, path: str = "") -> list[str]:
    batches = home.volumes.list_files(volume_id, path, recursive=True)
    return [entry.path async for batch in batches for entry in batch]


async def changes(
    home: Home, volume_id: str, since: int
) -> tuple[ChangesHead, dict[str, VolumeEntry]]:
    unframer = Unframer()
    spool = await home.volumes.changes(volume_id, since)
    values = [value async for chunk in spool.chunks() for value in unframer.feed(chunk)]
    spool.close()
    head = msgspec.msgpack.decode(values[0], type=ChangesHead)
    batches = [msgspec.msgpack.decode(value, type=list[VolumeEntry]) for value in values[1:]]
    return head, {entry.path: entry for batch in batches for entry in batch}


async def commit(
    home: Home,
    volume_id: str,
    base: int,
    files: dict[str, bytes],
    trees: list[str] | None = None,
    removed: list[str] | None = None,
    commit_id: str = "",
) -> int:
    entries: list[VolumeEntry] = []
    for path, data in files.items():
        await home.files.put_bytes(data)
        entries.append(VolumeEntry(path, FILE, len(data), hashes=digest(data) if data else b""))
    return await home.volumes.commit(
        volume_id,
        VolumeCommit(
            commit_id or f"vc-{base}-{sorted(files)}", base, trees or [], removed or [], entries
        ),
    )


# ── requests that come twice ──────────────────────────────────────────────────────────────────


def test_a_repeated_upload_is_carried_out_once(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        for _ in range(2):
            assert await put(home, volume, {"a": b"1"}, force=False, key="k") == []
        with pytest.raises(AlreadyExistsError):
            await put(home, volume, {"a": b"1"}, force=False, key="another")

    run(tmp_path, scenario)


def test_a_repeated_removal_or_copy_is_carried_out_once(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        await put(home, volume, {"a": b"1", "d/b": b"2"})
        for _ in range(2):
            await home.volumes.remove(volume, "a", recursive=False, change_id="vc-1")
            await home.volumes.copy(volume, ["d"], "e", recursive=True, change_id="vc-2")
        assert await paths(home, volume) == ["d", "e", "d/b", "e/b"]

    run(tmp_path, scenario)


def test_a_repeated_creation_is_the_same_volume(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        assert await create(home, kind=FAIL, key="k") == await create(home, kind=FAIL, key="k")
        with pytest.raises(AlreadyExistsError):
            await create(home, kind=FAIL, key="other")

    run(tmp_path, scenario)


# ── blocks ────────────────────────────────────────────────────────────────────────────────────


def test_missing_blocks_are_named_once_and_zeros_never(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        block = digest(b"x" * BLOCK_BYTES)
        request = api_pb2.VolumePutFiles2Request(volume_id=volume)
        file = request.files.add(path="a", size=3 * BLOCK_BYTES)
        for sha256 in (digest(b""), block, block):
            file.blocks.add(contents_sha256=sha256)
        context = home.context("VolumePutFiles2")
        response = await rpc_of(home).VolumePutFiles2(request, context)
        found = [(block.file_index, block.block_index) for block in response.missing_blocks]
        assert found == [(0, 1)]
        assert await paths(home, volume) == []

    run(tmp_path, scenario)


def test_sizes_and_blocks_must_agree(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        await home.files.put_bytes(b"0123456789")
        request = api_pb2.VolumePutFiles2Request(volume_id=volume)
        request.files.add(path="a", size=4).blocks.add(contents_sha256=digest(b"0123456789"))
        with pytest.raises(InvalidError, match="10 bytes, more than the 4"):
            await rpc_of(home).VolumePutFiles2(request, home.context("VolumePutFiles2"))
        request.files[0].size = BLOCK_BYTES + 1
        with pytest.raises(InvalidError, match="2 blocks"):
            await rpc_of(home).VolumePutFiles2(request, home.context("VolumePutFiles2"))

    run(tmp_path, scenario)


def test_reading_a_range_that_crosses_blocks(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        first, second = b"a" * (BLOCK_BYTES - 5), b"b" * 10
        for data in (first, second):
            await home.files.put_bytes(data)
        request = api_pb2.VolumePutFiles2Request(volume_id=volume)
        file = request.files.add(path="f", size=BLOCK_BYTES + 20)
        for data in (first, second):
            file.blocks.add(contents_sha256=digest(data))
        await rpc_of(home).VolumePutFiles2(request, home.context("VolumePutFiles2"))
        response = await rpc_of(home).VolumeGetFile2(
            api_pb2.VolumeGetFile2Request(
                volume_id=volume, path="f", start=BLOCK_BYTES - 8, len=16
            ),
            home.context("VolumeGetFile2"),
        )
        assert (response.size, response.start, response.len) == (
            BLOCK_BYTES + 20,
            BLOCK_BYTES - 8,
            16,
        )
        assert len(response.get_urls) == 2
        answer = await rpc_of(home).VolumeGetFile(
            api_pb2.VolumeGetFileRequest(volume_id=volume, path="f", start=BLOCK_BYTES - 8, len=30),
            home.context("VolumeGetFile"),
        )
        assert answer.data == b"aaa" + bytes(5) + b"b" * 10 + bytes(10)
        whole = await rpc_of(home).VolumeGetFile(
            api_pb2.VolumeGetFileRequest(volume_id=volume, path="f"),
            home.context("VolumeGetFile"),
        )
        found = await home.blobs.read(whole.data_blob_id)
        assert found == first + bytes(5) + second + bytes(10)

    run(tmp_path, scenario)


def test_contents_of_files_are_kept_and_others_swept(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        await put(home, volume, {"a": b"1", "b": b"2"})
        await home.volumes.remove(volume, "b", recursive=False, change_id="vc-1")
        live = await home.volumes.contents()
        assert live == {digest(b"1").hex()}
        assert await home.files.sweep(live, grace_s=-1) == 1
        assert await home.files.has(digest(b"1").hex())
        await home.volume_objects.delete(volume)
        assert await home.volumes.contents() == set()

    run(tmp_path, scenario)


# ── what nodes see and commit ─────────────────────────────────────────────────────────────────


def test_changes_since_a_revision(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        await put(home, volume, {"d/a": b"1", "d/b": b"2", "e/c": b"3"})
        head, entries = await changes(home, volume, 0)
        assert head.complete
        assert sorted(entries) == ["d", "d/a", "d/b", "e", "e/c"]
        await put(home, volume, {"d/a": b"4"})
        await home.volumes.remove(volume, "e", recursive=True, change_id="vc-1")
        newer, entries = await changes(home, volume, head.revision)
        assert not newer.complete
        assert newer.revision == head.revision + 2
        kinds = {path: entry.kind for path, entry in entries.items()}
        assert kinds == {"d": DIRECTORY, "d/a": FILE, "e": GONE, "e/c": GONE}
        assert list(kinds) == ["d", "d/a", "e", "e/c"]

    run(tmp_path, scenario)


def test_old_removals_are_forgotten_and_nodes_behind_get_everything(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        await put(home, volume, {"a": b"1", "b": b"2"})
        head, _ = await changes(home, volume, 0)
        await home.volumes.remove(volume, "a", recursive=False, change_id="vc-1")
        home.clock.offset += TOMBSTONE_S + 1
        assert await home.volumes.prune() >= 1
        newer, entries = await changes(home, volume, head.revision)
        assert newer.complete
        assert list(entries) == ["b"]

    run(tmp_path, scenario)


def test_commits_of_two_containers_meet(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        base = await commit(home, volume, 0, {"same": b"0", "d/old": b"0"})
        await commit(home, volume, base, {"same": b"1", "d/one": b"1"})
        await commit(home, volume, base, {"same": b"2", "d/two": b"2"}, trees=["d"])
        # what the second one removed is what it knew of; the first one's new file stays
        assert await paths(home, volume) == ["d", "same", "d/one", "d/two"]
        assert (await home.volumes.entry(volume, "same")).hashes == digest(b"2")

    run(tmp_path, scenario)


def test_a_commit_removes_a_whole_tree(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        base = await commit(home, volume, 0, {"d/e/f": b"1", "d/g": b"2", "other": b"3"})
        await commit(home, volume, base, {}, trees=["d"])
        assert await paths(home, volume) == ["other"]
        await commit(home, volume, base + 1, {}, removed=["other"], commit_id="vc-x")
        assert await paths(home, volume) == []

    run(tmp_path, scenario)


def test_the_last_commit_decides_between_file_and_directory(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        base = await commit(home, volume, 0, {"x": b"1"})
        await commit(home, volume, base, {"x/inner": b"2"})
        assert await paths(home, volume) == ["x", "x/inner"]
        await commit(home, volume, base, {"x": b"3"}, commit_id="vc-x")
        assert await paths(home, volume) == ["x"]

    run(tmp_path, scenario)


def test_a_commit_without_its_contents_is_refused(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        entry = VolumeEntry("a", FILE, 1, hashes=digest(b"?"))
        with pytest.raises(ConflictError, match="not arrived"):
            await home.volumes.commit(volume, VolumeCommit("vc-1", 0, [], [], [entry]))
        entry = VolumeEntry("/a", DIRECTORY)
        with pytest.raises(InvalidError, match="normalised"):
            await home.volumes.commit(volume, VolumeCommit("vc-2", 0, [], [], [entry]))

    run(tmp_path, scenario)


def test_symbolic_links_are_followed_inside(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        await commit(home, volume, 0, {"d/file": b"1"})
        links = {"l": "d/file", "k": "d", "d/up": "../l", "out": "../../etc", "loop": "loop"}
        entries = [VolumeEntry(path, SYMLINK, target=to) for path, to in links.items()]
        await home.volumes.commit(volume, VolumeCommit("vc-1", 1, [], [], entries))
        for path in ("l", "k/file", "d/up", "k/up"):
            assert (await home.volumes.entry(volume, path)).path == "d/file"
        for path in ("out/passwd", "loop", "l/x"):
            with pytest.raises(NotFoundError):
                await home.volumes.entry(volume, path)

    run(tmp_path, scenario)


# ── lifetimes ─────────────────────────────────────────────────────────────────────────────────


def test_an_environment_takes_its_volumes_along(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        await put(home, volume, {"a": b"1"})
        await home.volume_objects.delete_of_environment(home.environments.default)
        assert await home.volumes.contents() == set()

    run(tmp_path, scenario)


# ── fsck ──────────────────────────────────────────────────────────────────────────────────────


def test_fsck_finds_what_is_damaged(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume = await create(home)
        await put(home, volume, {"d/good": b"good", "gone": b"gone", "changed": b"before"})
        url = home.database._engine.url.render_as_string(hide_password=False)
        database_url = url if url.startswith("postgresql") else ""
        settings = Settings(home=tmp_path, database_url=database_url)

        def check(*, quick: bool = False) -> fsck.Report:
            return fsck.check(open_reader(settings), inspect(settings), quick=quick)

        report = check()
        assert (report.volumes, report.files, report.damages) == (1, 3, [])
        home.files.path(digest(b"gone").hex()).unlink()
        changed = home.files.path(digest(b"before").hex())
        changed.chmod(0o600)
        changed.write_bytes(b"behind")
        report = check()
        assert {damage.path: damage.problem.split()[-1] for damage in report.damages} == {
            "changed": "hash",
            "gone": "missing",
        }
        quick = check(quick=True)
        assert [damage.path for damage in quick.damages] == ["gone"]

    run(tmp_path, scenario)


@pytest.mark.parametrize("name", ["", "no spaces", "x" * 65, "ap-" + "a" * 22])
def test_names_that_are_refused(tmp_path: Path, name: str) -> None:
    async def scenario(home: Home) -> None:
        with pytest.raises(InvalidError, match="not a Volume name"):
            await create(home, name)

    run(tmp_path, scenario)


def test_thousands_of_files_are_listed_once_each(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        volume_id = await create(home)
        wanted = [f"many/{number % 7}/{number:06}-{'x' * 200}" for number in range(30_000)]
        await put(home, volume_id, dict.fromkeys(wanted, b""))
        listed = await paths(home, volume_id, "many")
        assert sorted(listed) == sorted([*wanted, *(f"many/{number}" for number in range(7))])
        _, entries = await changes(home, volume_id, 0)
        assert {path for path in entries if "x" in path} == set(wanted)

    run(tmp_path, scenario)


def test_paths_are_looked_up_by_the_key_however_many_files_there_are(tmp_path: Path) -> None:
    """Whole volumes were once read for each path: a million files took hours."""
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    plans: list[str] = []

    def explain(
        connection: sa.Connection, _: object, statement: str, parameters: object, *_more: object
    ) -> None:
        if "json_each" in statement and not statement.startswith("EXPLAIN"):
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[arg-type]
            plans.extend(row[3] for row in rows)

    with engine.begin() as connection:
        volume_files.create(connection)
        tree = Tree(connection, "vo-1", 1)
        tree.put([VolumeEntry(f"a/{n}", FILE, 1, hashes=bytes(32)) for n in range(300)])
        sa.event.listen(connection, "before_cursor_execute", explain)
        found = tree.get_many(["a/7", "a/no", "b/7", "a/299"])
    engine.dispose()
    assert sorted(found) == ["a/299", "a/7"]
    searches = [plan for plan in plans if "volume_files" in plan]
    assert searches
    assert all("parent=? AND name=?" in plan for plan in searches), plans
