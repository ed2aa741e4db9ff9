"""One test a package; docs/integrations.md says what was found with which version."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.conftest import HERE, PROGRAMS, Run

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

BEFORE_1_6 = "modal==1.5.4"
"""For packages that use what the client no longer has since 1.6."""

INSPECT_AS_ROOT = {
    "test_read_file_not_allowed",
    "test_write_text_file_without_permissions",
    "test_write_binary_file_without_permissions",
    "test_exec_permission_error",
}
"""Sandboxes run as root, whom permissions do not keep out; and this package's ``exec`` never raises
``PermissionError``."""
LANGCHAIN_GLOBS = {
    "test_glob",
    "test_glob_basic_pattern",
    "test_glob_with_directories",
    "test_glob_hidden_files_explicitly",
    "test_glob_with_character_class",
    "test_glob_with_question_mark",
    "test_write_existing_file_fails",
}
"""The suite is older than the deepagents that the package asks for: that gives whole paths, and
overwrites files."""


def _last(text: str) -> Any:
    """The JSON that a program printed last; some packages log to the same stream."""
    return json.loads([line for line in text.splitlines() if line[:1] in "[{" and line][-1])


def _program(name: str) -> str:
    return str(PROGRAMS / f"{name}.py")


def _suite(run: Run, packages: list[str], name: str, *options: str) -> tuple[int, set[str]]:
    """How many tests of a pytest file passed, and which did not."""
    plain = [
        "-q",
        "-c",
        "/dev/null",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(PROGRAMS),
    ]
    arguments = ["-m", "pytest", *plain, *options, _program(name)]
    text = run(packages, "python", *arguments, codes=(0, 1))
    passed = re.search(r"(\d+) passed", text)
    failed = re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", text, re.MULTILINE)
    return int(passed[1]) if passed else 0, set(failed)


def test_swe_rex(run: Run) -> None:
    text = run(["swe-rex[modal]==1.4.0"], "python", _program("swe_rex"))
    assert _last(text) == ["corpus in /tmp\n", 0, "kept", "once\n", 4]


def test_smolagents(run: Run) -> None:
    text = run(["smolagents[modal]==1.26.0"], "python", _program("smolagents_executor"))
    first, second, third, failed = _last(text)
    assert (first, second, third, failed) == ("printed\n", "42", "'b6'", True)


def test_modal_sandbox_sdk(run: Run) -> None:
    text = run(["modal-sandbox-sdk==0.4.1"], "python", _program("modal_sandbox_sdk"))
    assert _last(text) == {
        "read": "ship it\n",
        "run": ["corpus\n", 3],
        "files": ["todo.txt"],
        "size": 8,
        "kept": "ship it\n",
        "command": "42\n",
    }


def test_openai_agents(run: Run) -> None:
    kinds = ["tar", "snapshot_filesystem", "snapshot_directory"]
    text = run(["openai-agents[modal]==0.24.0"], "python", _program("openai_agents"), *kinds)
    assert _last(text) == {kind: ["kept", "kept", "err\n", 5, "kept", True] for kind in kinds}


def test_langchain_modal(run: Run) -> None:
    packages = ["langchain-modal==0.0.7", "langchain-tests==1.1.9", BEFORE_1_6]
    passed, failed = _suite(run, packages, "langchain_suite", "-o", "asyncio_mode=auto")
    assert failed == LANGCHAIN_GLOBS
    assert passed >= 79


def test_inspect_sandboxes(run: Run) -> None:
    packages = ["inspect-sandboxes==0.6.1", "pytest", BEFORE_1_6]
    passed, failed = _suite(run, packages, "inspect_suite")
    assert failed == INSPECT_AS_ROOT
    assert passed >= 40


def test_harbor(run: Run, tmp_path: Path) -> None:
    task, jobs = str(HERE / "harbor_task"), tmp_path / "jobs"
    options = ["-p", task, "-a", "oracle", "-e", "modal", "-o", str(jobs), "-q", "-y"]
    run(["harbor[modal]==0.26.0"], "harbor", "run", *options)
    rewards = [path.read_text().strip() for path in jobs.glob("**/verifier/reward.txt")]
    assert rewards == ["1"]
