"""NetworkFileSystem: deprecated by the newest clients, and still in programs."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

PROGRAM = "network_file_systems"


def test_files_from_outside(checks: Checks) -> None:
    assert checks.value("from_outside") == {
        "read": ["a again", "bb"],
        "root": ["dir"],
        "dir": ["a.txt", "sub"],
        "iter": ["a.txt", "sub"],
        "file": ["dir/a.txt", 1, 7, True],
        "glob": ["dir/a.txt"],
        "deep": ["dir", "dir/a.txt", "dir/sub", "dir/sub/b.txt"],
        "deep_txt": ["dir/a.txt", "dir/sub/b.txt"],
    }
    assert checks.value("large") == [6 * 1024 * 1024, True]
    assert checks.value("empty_file") == ""
    assert checks.value("local_directory") == ["copied/inner", "copied/inner/two", "copied/one"]


def test_containers_share_it_live(checks: Checks) -> None:
    seen, read, live = checks.value("in_containers")
    assert seen == ["dir", "dir/a.txt", "dir/sub", "dir/sub/b.txt", "from", "from/container.txt"]
    assert (read, live) == ("written inside", "live")
    assert checks.value("outside_to_inside") == "uploaded"
    assert checks.value("through_the_client") == "from a container"


def test_sandboxes_share_it_too(checks: Checks) -> None:
    assert checks.value("in_a_sandbox") == [0, "live", "by a sandbox\n"]


def test_links_of_containers_do_not_lead_out(checks: Checks) -> None:
    found, through_a_link = checks.value("links")
    assert found == {"out": "FileNotFoundError", "up/hostname": "FileNotFoundError"}
    assert through_a_link == "a again"


@pytest.mark.parametrize(
    ("check", "kind"),
    [
        ("missing", "FileNotFoundError"),
        ("missing_folder", "NotFoundError"),
        ("folder_as_file", "InvalidError"),
        ("file_as_folder", "InvalidError"),
        ("folder_replaced", "InvalidError"),
        ("leading_out", "InvalidError"),
        ("not_recursive", "InvalidError"),
        ("remove_missing", "FileNotFoundError"),
        ("volume_by_that_name", "InvalidError"),
        ("unknown", "NotFoundError"),
    ],
)
def test_mistakes(checks: Checks, client: Client, check: str, kind: str) -> None:
    error = checks.error(check)
    if client.release < (1, 3) and kind not in error["bases"]:
        kind = "GRPCError"  # how old clients show what they do not map
    assert kind in error["bases"]


def test_removal(checks: Checks) -> None:
    assert checks.value("remove") == []


def test_ephemeral(checks: Checks) -> None:
    assert checks.value("ephemeral") == ["y", ["x"]]


def test_command_line(runner: Runner, client: Client) -> None:
    def nfs(*arguments: str) -> str:
        return runner.cli(client, "nfs", *arguments).succeeded().stdout

    name = f"cli-{client.version.replace('.', '-')}"
    nfs("create", name)
    assert name in [row["name"] for row in runner.rows(client, "nfs", "list")]
    source = runner.folder / "nfs-source"
    (source / "sub").mkdir(parents=True, exist_ok=True)
    (source / "a.txt").write_text("a")
    (source / "sub" / "b.txt").write_text("b")
    nfs("put", name, str(source), "/tree")
    nfs("put", name, str(source / "a.txt"), "/")
    assert sorted(nfs("ls", name).split()) == ["a.txt", "tree"]
    assert nfs("get", name, "a.txt", "-").startswith("a")
    target = runner.folder / f"nfs-target-{client.version}"
    target.mkdir()
    nfs("get", name, "**", str(target))
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*"))
    assert found == ["a.txt", "tree", "tree/a.txt", "tree/sub", "tree/sub/b.txt"]
    assert "--force" in runner.cli(client, "nfs", "get", name, "**", str(target)).output
    nfs("rm", name, "a.txt")
    nfs("rm", "-r", name, "tree")
    assert nfs("ls", name).split() == []
    assert runner.cli(client, "nfs", "create", name).returncode != 0
    nfs("delete", "--yes", name)
    assert name not in [row["name"] for row in runner.rows(client, "nfs", "list")]
    assert runner.cli(client, "nfs", "ls", name).returncode != 0
