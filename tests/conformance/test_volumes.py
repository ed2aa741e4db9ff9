"""Volumes from outside of containers: every public method, on both versions of volumes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Completed, Runner
from tests.conformance.harness.server import Server

NOT_FOUND = "there is no file"


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    return runner.checks(client, "volumes", script=True)


@pytest.fixture(params=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


def error_of(checks: Checks, check: str, kind: str, client: Client, words: str = "") -> None:
    """The check failed with that exception; clients before 1.3 show a bare gRPC error instead."""
    error = checks.error(check)
    kinds = {kind} if client.release >= (1, 3) else {kind, "GRPCError"}
    assert kinds & set(error["bases"]), error["traceback"]
    assert words in error["message"]


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_a_new_volume_is_empty(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_empty") == []


def test_upload_makes_files_and_their_directories(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_upload") == [
        ["a", "DIRECTORY", 0],
        ["a/b", "DIRECTORY", 0],
        ["a/b/deep.bin", "FILE", 3],
        ["empty", "FILE", 0],
        ["hello.txt", "FILE", 5],
        ["zeros", "FILE", 5000],
    ]


def test_listdir(checks: Checks, version: str) -> None:
    names = [path for path, _, _ in checks.value(f"{version}_list_root")]
    assert names == ["a", "empty", "hello.txt", "zeros"]
    assert checks.value(f"{version}_list_with_slash") == [["a/b", "DIRECTORY", 0]]
    assert checks.value(f"{version}_list_file") == [["a/b/deep.bin", "FILE", 3]]


def test_listdir_of_what_is_not_there(checks: Checks, version: str, client: Client) -> None:
    error_of(checks, f"{version}_list_missing", "NotFoundError", client, NOT_FOUND)


def test_listdir_with_a_pattern(checks: Checks, version: str) -> None:
    assert "InvalidError" in checks.error(f"{version}_list_glob")["bases"]


def test_iterdir_is_recursive(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_iterdir") == [
        "a",
        "a/b",
        "a/b/deep.bin",
        "empty",
        "hello.txt",
        "zeros",
    ]


def test_times_are_of_the_upload(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_mtime") > 1.7e9


def test_read_file(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_read") == "hello"
    assert checks.value(f"{version}_read_empty") == 0
    assert checks.value(f"{version}_read_zeros") is True


def test_read_file_that_is_not_there(checks: Checks, version: str) -> None:
    assert checks.error(f"{version}_read_missing")["type"] == "FileNotFoundError"


def test_read_file_of_a_directory(checks: Checks, version: str, client: Client) -> None:
    error_of(checks, f"{version}_read_directory", "InvalidError", client, "is a directory")


def test_paths_do_not_lead_out(checks: Checks, version: str, client: Client) -> None:
    error_of(checks, f"{version}_dots", "InvalidError", client, "'..'")


def test_existing_files_are_kept_without_force(checks: Checks, version: str) -> None:
    assert checks.error(f"{version}_again")["type"] == "FileExistsError"
    assert "/hello.txt already exists" in checks.error(f"{version}_again")["message"]
    assert checks.value(f"{version}_again_kept") == "hello"


def test_force_replaces_files(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_forced") == "replaced"


@pytest.mark.parametrize("check", ["over_directory", "below_file"])
def test_force_does_not_mix_files_and_directories(checks: Checks, version: str, check: str) -> None:
    assert checks.error(f"{version}_{check}")["type"] == "FileExistsError"


def test_a_batch_is_taken_as_a_whole(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_all_or_nothing") == []


def test_put_directory(checks: Checks, version: str) -> None:
    same, tree, flat = checks.value(f"{version}_put_directory")
    assert same is True
    assert [path for path, _, _ in tree] == ["tree/inner", "tree/inner/one.txt", "tree/two.txt"]
    assert flat == [["flat/two.txt", "FILE", 3]]


def test_files_of_many_blocks(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_large") == [True, True, True, True]


def test_blocks_that_repeat(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_repeated_blocks") is True


def test_many_files_at_once(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_many_small") == [300, "123"]


def test_async_interface(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_aio") == "async"


def test_copy_files(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_copy_file") == "replaced"
    names = [path for path, _, _ in checks.value(f"{version}_copy_into")]
    assert names == ["a/b", "a/hello.txt", "a/zeros"]


@pytest.mark.parametrize(
    ("check", "kind", "words"),
    [
        ("copy_missing", "NotFoundError", "'nothing'"),
        ("copy_many_to_file", "InvalidError", "not a directory"),
        ("copy_directory_plain", "InvalidError", "recursive"),
        ("copy_to_itself", "InvalidError", "itself"),
        ("copy_without_folder", "NotFoundError", "no directory 'no/where'"),
    ],
)
def test_copy_refusals(
    checks: Checks, version: str, client: Client, check: str, kind: str, words: str
) -> None:
    error_of(checks, f"{version}_{check}", kind, client, words)


def test_copy_directories(checks: Checks, client: Client) -> None:
    assert [path for path, _, _ in checks.value("v2_copy_recursive")] == [
        "tree2/inner",
        "tree2/inner/one.txt",
        "tree2/tree",
        "tree2/tree/inner",
        "tree2/tree/inner/one.txt",
        "tree2/tree/two.txt",
        "tree2/two.txt",
    ]
    error_of(checks, "v2_copy_into_itself", "InvalidError", client, "into itself")


def test_remove_file(checks: Checks, version: str, client: Client) -> None:
    assert checks.value(f"{version}_remove") == []
    error_of(checks, f"{version}_remove_missing", "FileNotFoundError", client)


@pytest.mark.parametrize("check", ["remove_directory_plain", "remove_root"])
def test_remove_refusals(checks: Checks, version: str, client: Client, check: str) -> None:
    error_of(checks, f"{version}_{check}", "InvalidError", client)


def test_remove_directory(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_remove_recursive") == [[], "a file now"]


def test_read_only_handle(checks: Checks, version: str) -> None:
    text, message = checks.value(f"{version}_read_only_handle")
    assert text == "replaced"
    assert "Read-only" in message


@pytest.mark.parametrize("what", ["commit", "reload"])
def test_commit_and_reload_are_for_containers(
    checks: Checks, version: str, client: Client, what: str
) -> None:
    error_of(
        checks, f"{version}_{what}_outside", "RuntimeError", client, "not running in a container"
    )


@pytest.mark.since("1.3.4")
def test_from_id(checks: Checks, version: str, client: Client) -> None:
    assert checks.value(f"{version}_from_id") == "replaced"
    error_of(checks, f"{version}_from_id_missing", "NotFoundError", client, "not found")


@pytest.mark.parametrize("check", ["after_delete", "upload_after_delete"])
def test_a_deleted_volume_is_gone(checks: Checks, version: str, client: Client, check: str) -> None:
    error_of(checks, f"{version}_{check}", "NotFoundError", client, "deleted")


# ── volumes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("check", ["lookup_missing", "lookup_environment", "rename_gone"])
def test_lookup_of_what_is_not_there(checks: Checks, client: Client, check: str) -> None:
    error_of(checks, check, "NotFoundError", client, "not found")


def test_create_if_missing(checks: Checks) -> None:
    assert checks.value("once") == ["vo-", 1]


@pytest.mark.since("1.3")
def test_version_mismatch(checks: Checks) -> None:
    assert checks.error("other_version")["type"] == "InvalidError"


def test_rename(checks: Checks, client: Client) -> None:
    assert checks.value("rename") == [True, "kept"]
    error_of(checks, "rename_taken", "AlreadyExistsError", client, "already exists")
    error_of(checks, "rename_bad", "InvalidError", client, "not a Volume name")


def test_delete_of_what_is_not_there(checks: Checks, client: Client) -> None:
    error_of(checks, "delete_missing", "NotFoundError", client)


def test_ephemeral(checks: Checks) -> None:
    assert checks.value("ephemeral") == ["short", "vo-"]
    assert checks.value("ephemeral_aio") == []


@pytest.mark.since("1.1.2")
def test_objects(checks: Checks) -> None:
    assert "already exists" in checks.value("objects_create")
    assert checks.value("objects_list") == [105, True, 105, True]
    assert checks.value("objects_delete_missing") is None


@pytest.mark.since("1.3")
def test_info(checks: Checks) -> None:
    assert checks.value("info") == [True, True, True]


# ── the command line ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["1", "2"])
def name(request: pytest.FixtureRequest, client: Client) -> str:
    return f"cli-{request.param}-{client.version.replace('.', '-')}"


def test_cli(runner: Runner, client: Client, name: str, tmp_path: Path) -> None:
    def volume(command: str, *arguments: str) -> Completed:
        return runner.cli(client, "volume", command, *arguments)

    version = name.split("-")[1]
    assert name in volume("create", name, "--version", version).succeeded().stdout
    assert volume("create", name).returncode != 0
    listed = runner.rows(client, "volume", "list")
    assert name in [row["name"] for row in listed]

    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "one").write_text("one")
    (tmp_path / "two").write_bytes(bytes(range(256)) * 100)
    volume("put", name, str(tmp_path / "tree"), "/tree").succeeded()
    volume("put", name, str(tmp_path / "two"), "data/").succeeded()
    refused = volume("put", name, str(tmp_path / "two"), "data/two")
    assert refused.returncode == 2
    assert "already exists" in refused.output
    volume("put", "--force", name, str(tmp_path / "two"), "data/two").succeeded()

    assert volume("ls", name).succeeded().stdout.split() == ["data", "tree"]
    rows = json.loads(volume("ls", name, "tree/inner", "--json").succeeded().stdout)
    assert [row.get("Filename") or row.get("filename") for row in rows] == ["tree/inner/one"]
    assert volume("ls", name, "nowhere").returncode != 0

    assert volume("get", name, "tree/inner/one", "-").succeeded().stdout.startswith("one")
    target = tmp_path / "got"
    target.mkdir()
    volume("get", name, "/", str(target)).succeeded()
    assert (target / "tree" / "inner" / "one").read_text() == "one"
    assert (target / "data" / "two").read_bytes() == (tmp_path / "two").read_bytes()
    assert volume("get", name, "nowhere", str(target / "x")).returncode != 0

    volume("cp", name, "data/two", "three").succeeded()
    volume("rm", name, "data/two").succeeded()
    assert "only removed with recursive" in volume("rm", name, "tree").output
    volume("rm", "--recursive", name, "tree").succeeded()
    assert volume("ls", name).succeeded().stdout.split() == ["data", "three"]
    assert volume("rm", name, "data/two").returncode != 0

    volume("rename", "--yes", name, f"{name}-new").succeeded()
    assert volume("ls", name).returncode != 0
    volume("delete", "--yes", f"{name}-new").succeeded()
    assert volume("ls", f"{name}-new").returncode != 0


def test_cli_with_unusual_names(runner: Runner, client: Client, tmp_path: Path) -> None:
    """Spaces, any letters, what looks like options and patterns; blocks that are just full; links."""
    name = f"unusual-{client.version.replace('.', '-')}"

    def volume(command: str, *arguments: str) -> Completed:
        return runner.cli(client, "volume", command, *arguments)

    def refused(words: str, command: str, *arguments: str) -> None:
        done = volume(command, *arguments)
        assert done.returncode != 0
        assert words in " ".join(done.output.replace("│", " ").split())

    block = 8 << 20
    files = {
        "-dash": b"dash",
        "--force": b"no option",
        "empty": b"",
        **{f"full {more}": os.urandom(block + more) for more in (-1, 0, 1)},
        "with space/ünï ☃/ſ.bin": b"unicode",
        "with space/" + "deep/" * 40 + "x": b"deep",
        **{
            odd: odd.encode()
            for odd in ("new\nline", "back\\slash", "100%", "q?*[x]", "#hash", " a ")
        },
    }
    tree = tmp_path / "tree"
    for path, data in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    (tree / "link").symlink_to("--force")
    (tree / "dangling").symlink_to("nowhere")
    (tree / "no files").mkdir()
    volume("create", name).succeeded()
    volume("put", name, str(tree), "/up").succeeded()
    refused("already exists", "put", name, str(tree), "/up")
    got = tmp_path / "got"
    got.mkdir()
    volume("get", name, "/up", str(got)).succeeded()
    found = [path for path in got.rglob("*") if path.is_file()]
    there = {path.relative_to(got / "up").as_posix(): path.read_bytes() for path in found}
    assert there == {**files, "link": b"no option"}

    (tmp_path / "old").write_text("old")
    refused("already exists", "get", name, "/up/#hash", str(tmp_path / "old"))
    assert (tmp_path / "old").read_text() == "old"
    volume("get", "--force", name, "/up/#hash", str(tmp_path / "old")).succeeded()
    assert (tmp_path / "old").read_text() == "#hash"
    assert volume("get", name, "/up/--force", "-").succeeded().stdout.startswith("no option")

    volume("put", name, "--", str(tree / "-dash"), "-dashed").succeeded()
    volume("put", "--force", name, str(tree / "empty"), "/up/#hash").succeeded()
    kept = "is a directory and is not replaced"
    refused(kept, "put", "--force", name, str(tree / "empty"), "/up/with space")
    refused(
        "nothing can be uploaded below", "put", "-f", name, str(tree / "no files/.."), "/up/100%"
    )
    refused("leads out of the volume", "put", name, str(tree / "empty"), "/a/../../b")
    refused("copied to itself", "cp", name, "/up/empty", "up//empty")
    refused("'/' cannot be copied into itself", "cp", "-r", name, "/", "/up/inside")
    refused("root of a volume is not removed", "rm", "-r", name, "/")
    volume("rm", "-r", name, "up/with space/ünï ☃").succeeded()
    refused("not a Volume name", "rename", "--yes", name, "a name")
    refused("not found", "rename", "--yes", "never-made", f"{name}-new")
    assert volume("ls", name).succeeded().stdout.split() == ["-dashed", "up"]


@pytest.mark.since("1.1.2")
def test_cli_delete_allow_missing(runner: Runner, client: Client) -> None:
    runner.cli(client, "volume", "delete", "--yes", "--allow-missing", "never-made").succeeded()
    assert runner.cli(client, "volume", "delete", "--yes", "never-made").returncode != 0


def test_fsck(server: Server, runner: Runner, client: Client, tmp_path: Path) -> None:
    name = f"fsck-{client.version.replace('.', '-')}"
    (tmp_path / "file").write_bytes(bytes(range(256)))
    runner.cli(client, "volume", "create", name).succeeded()
    runner.cli(client, "volume", "put", name, str(tmp_path / "file"), "/file").succeeded()
    done = server.homeport("volume", "fsck", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["volumes"] >= 1
    assert report["damages"] == []
