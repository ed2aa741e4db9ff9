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


def _last(text: str) -> Any:
    """The JSON that a program printed last."""
    return json.loads(text.strip().splitlines()[-1])


def _program(name: str) -> str:
    return str(PROGRAMS / f"{name}.py")


def _suite(run: Run, packages: list[str], name: str) -> dict[str, int]:
    """How many tests of a pytest file had which end."""
    options = ["-q", "-c", "/dev/null", "-p", "no:cacheprovider", "--rootdir", str(PROGRAMS)]
    text = run(packages, "python", "-m", "pytest", *options, _program(name))
    return {kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", text.splitlines()[-1])}


def test_swe_rex(run: Run) -> None:
    text = run(["swe-rex[modal]==1.4.0"], "python", _program("swe_rex"))
    assert _last(text) == ["corpus in /tmp", 0, "kept", "once\n", 4]


def test_smolagents(run: Run) -> None:
    text = run(["smolagents[modal]==1.26.0"], "python", _program("smolagents_executor"))
    first, second, third, failed = _last(text)
    assert (first.strip(), second, third, failed) == ("printed", 42, "b6", True)


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
    found = _suite(run, packages, "langchain_suite")
    assert found["passed"] > 70
    assert not {"failed", "errors", "error"} & set(found)


def test_inspect_sandboxes(run: Run) -> None:
    packages = ["inspect-sandboxes==0.6.1", "pytest", BEFORE_1_6]
    found = _suite(run, packages, "inspect_suite")
    assert found["passed"] > 30
    assert not {"failed", "errors", "error"} & set(found)


def test_harbor(run: Run, tmp_path: Path) -> None:
    task, jobs = str(HERE / "harbor_task"), tmp_path / "jobs"
    options = ["-p", task, "-a", "oracle", "-e", "modal", "-o", str(jobs), "-q", "-y"]
    run(["harbor[modal]==0.25.0"], "harbor", "run", *options)
    rewards = [path.read_text().strip() for path in jobs.glob("**/verifier/reward.txt")]
    assert rewards == ["1"]
