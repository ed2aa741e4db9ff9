"""Groups of containers, on trees of plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

from homeport.kernel.resources import Limits
from homeport.node.cgroups import INNER_GROUP, CgroupError, CgroupProvider, detect

CONTROLLERS = "cpuset cpu io memory pids"


def unified(root: Path) -> Path:
    """A machine with cgroup v2 only."""
    (root / "cgroup.controllers").write_text(CONTROLLERS)
    (root / "cgroup.subtree_control").write_text(CONTROLLERS)
    parent = root
    for name in ("homeport", "owner", "ta-1"):
        parent /= name
        parent.mkdir()
        for file, text in (("controllers", CONTROLLERS), ("subtree_control", CONTROLLERS)):
            (parent / f"cgroup.{file}").write_text(text)
        (parent / "cgroup.procs").write_text("")
    for file in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.weight"):
        (parent / file).write_text("")
    return parent


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    assert detect(tmp_path).version == "none"
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "cgroup.procs").write_text("")
    assert detect(tmp_path).version == "v1"
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.controllers").write_text("hugetlb")
    assert detect(tmp_path).version == "hybrid"
    (tmp_path / "cgroup.controllers").write_text(CONTROLLERS)
    assert detect(tmp_path).version == "v2"


def test_a_process_is_moved_into_its_group(tmp_path: Path) -> None:
    group = unified(tmp_path)
    provider = CgroupProvider("owner", tmp_path, delegated=False)
    provider.create("ta-1", Limits(memory_mb=64, pids=10)).attach_unified(4711)
    assert (group / "cgroup.procs").read_text() == "4711"
    assert (group / "memory.max").read_text() == str(64 * 1024 * 1024)
    assert (group / "pids.max").read_text() == "10"


def test_a_process_stays_in_the_group_of_its_tool_inside_the_containers(tmp_path: Path) -> None:
    group = unified(tmp_path)
    inner = group / INNER_GROUP
    inner.mkdir()
    (inner / "cgroup.procs").write_text("4711\n")
    provider = CgroupProvider("owner", tmp_path, delegated=False)
    assert provider.unified_only
    cgroup = provider.group("ta-1")
    assert cgroup.processes() == {4711}
    cgroup.attach_unified(4711)
    assert (group / "cgroup.procs").read_text() == ""
    assert (inner / "cgroup.procs").read_text() == "4711\n"


def test_a_process_joins_groups_of_version_1_itself(tmp_path: Path) -> None:
    for name in ("memory", "cpu", "pids"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").write_text("")
    group = CgroupProvider("owner", tmp_path, delegated=False).group("ta-1")
    assert {str(path.relative_to(tmp_path)) for path in group.tasks_files()} == {
        f"{name}/homeport/owner/ta-1/tasks" for name in ("memory", "cpu", "pids")
    }
    group.attach_unified(4711)  # there is none
    assert group.self_files() == group.tasks_files()


def test_a_limit_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cgroup.procs").write_text("")
    provider = CgroupProvider("owner", tmp_path, delegated=False)
    assert not provider.unified_only
    with pytest.raises(CgroupError, match="'memory'"):
        provider.create("ta-1", Limits(memory_mb=64))
    assert not (tmp_path / "cpu" / "homeport" / "owner" / "ta-1").exists()
