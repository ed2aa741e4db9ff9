"""Whether a runtime works: tried once, and again when something has changed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from homeport.node import probe
from homeport.node.trial import works

pytestmark = pytest.mark.root


@pytest.fixture
def runsc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name which is too old, and writes down that it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "runsc"
    program.write_text(
        f"#!/bin/sh\necho called >>{tmp_path}/calls\necho runsc version 0.0~20221219.0\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (tmp_path / "home/node").mkdir(parents=True)
    return program


def calls(tmp_path: Path) -> int:
    return len((tmp_path / "calls").read_text().splitlines())


def test_what_came_of_it_is_remembered_until_the_program_changes(
    runsc: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    first = asyncio.run(works(home, "runsc"))
    assert "of 20221219, too old" in first.failure
    assert "backports" in first.failure
    assert str(runsc) in first.subject
    assert calls(tmp_path) == 1
    assert asyncio.run(works(home, "runsc")) == first
    assert calls(tmp_path) == 1
    runsc.write_text(runsc.read_text() + "\n")
    assert asyncio.run(works(home, "runsc")).failure
    assert calls(tmp_path) == 2
    assert [path.name for path in (home / "node").iterdir()] == ["runtime-trials.json"]


def test_a_damaged_memory_is_none(runsc: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "node/runtime-trials.json").write_text("{")
    assert asyncio.run(works(home, "runsc")).failure
    assert calls(tmp_path) == 1


def test_what_is_not_installed_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    trial = asyncio.run(works(tmp_path, "runsc"))
    assert trial.failure == "runsc is not installed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "state", "words"),
    [
        ("", "ok", "bubblewrap isolates them"),
        ("auto", "warning", "too old; install"),
        ("runsc", "failed", "runsc does not work here"),
    ],
)
def test_doctor_says_what_isolates_sandboxes(
    runsc: Path, tmp_path: Path, setting: str, state: str, words: str
) -> None:
    check = asyncio.run(probe.sandboxes(tmp_path / "home", "", setting))
    assert (check.state, words in check.found) == (state, True), check.found
