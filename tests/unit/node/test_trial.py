"""Whether a runtime works: tried once, and again when something has changed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from homeport.node import probe
from homeport.node.leaks import find_leaks
from homeport.node.runtime.create import create_runtime
from homeport.node.runtimes import NodeRuntimes
from homeport.node.trial import Trial, recall, sweep_trials, trial_folder, works

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


def test_it_is_tried_once_and_again_when_the_program_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a program of ours before the real one, which says that it was called."""
    real = shutil.which("runsc")
    if real is None or asyncio.run(works(tmp_path, "runsc")).failure:
        pytest.skip("there is no runsc that works")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/runsc"
    program.write_text(f'#!/bin/sh\necho called >>{tmp_path}/calls\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    home = tmp_path / "home"
    (home / "node").mkdir(parents=True)
    first = asyncio.run(works(home, "runsc"))
    assert (first.failure, str(program) in first.subject) == ("", True)
    once = calls(tmp_path)
    assert asyncio.run(works(home, "runsc")) == asyncio.run(recall(home, "runsc")) == first
    assert calls(tmp_path) == once
    program.write_text(program.read_text() + "\n")
    assert asyncio.run(recall(home, "runsc")) is None
    assert asyncio.run(works(home, "runsc")).failure == ""
    assert calls(tmp_path) > once
    assert [path.name for path in (home / "node").iterdir()] == ["runtime-trials.json"]


def test_a_failure_is_not_remembered(runsc: Path, tmp_path: Path) -> None:
    """It may be gone although the program is the same."""
    home = tmp_path / "home"
    for number in (1, 2):
        trial = asyncio.run(works(home, "runsc"))
        assert "of 20221219, too old" in trial.failure
        assert "backports" in trial.failure
        assert str(runsc) in trial.subject
        assert calls(tmp_path) == number
        assert asyncio.run(recall(home, "runsc")) is None
    assert list((home / "node").iterdir()) == []


def test_a_damaged_memory_is_none(runsc: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "node/runtime-trials.json").write_text("{")
    assert asyncio.run(recall(home, "runsc")) is None
    assert asyncio.run(works(home, "runsc")).failure


def test_what_is_not_installed_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    trial = asyncio.run(works(tmp_path, "runsc"))
    assert trial.failure == "runsc is not installed"
    assert list(tmp_path.iterdir()) == []
    check = asyncio.run(probe.sandboxes(tmp_path, "", "auto"))
    assert (check.state, "they share this machine's kernel" in check.found) == ("ok", True)
    assert "install gVisor" in check.fix


@pytest.mark.parametrize(
    ("setting", "state", "words"),
    [
        ("", "ok", "bubblewrap isolates them"),
        ("bubblewrap", "ok", "bubblewrap isolates them"),
        ("auto", "warning", "too old; install"),
        ("runsc", "failed", "runsc does not work here"),
    ],
)
def test_doctor_says_what_isolates_sandboxes(
    runsc: Path, tmp_path: Path, setting: str, state: str, words: str
) -> None:
    check = asyncio.run(probe.sandboxes(tmp_path / "home", "", setting))
    assert (check.state, words in check.found) == (state, True), check.found


def test_what_a_killed_trial_left_is_removed_and_none_that_goes_on_is_disturbed(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        killed = tmp_path / "node/probe-1"
        killed.mkdir(parents=True)
        left = await create_runtime("", killed / "run", "no-probe")
        async with trial_folder(tmp_path) as ours:
            await sweep_trials(tmp_path)
            assert (ours.exists(), killed.exists()) == (True, False)
        await left.close()

    asyncio.run(scenario())
    assert find_leaks(tmp_path) == []


def test_auto_waits_for_no_trial_and_for_nothing_where_none_is_needed(
    runsc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def names() -> tuple[list[str], list[str]]:
        """When the node goes on, and when the verdict is there."""
        async with contextlib.AsyncExitStack() as stack:
            runtimes = NodeRuntimes(tmp_path / "home", "no-1", "", "auto", (), 3)
            default = await runtimes.default(stack)
            isolation = await runtimes.isolation(stack, default)
            first = isolation.names
            await isolation.settled()
            return first, isolation.names

    assert asyncio.run(names()) == (["bubblewrap", "runsc"], ["bubblewrap"])
    subject = f"{runsc} {runsc.stat().st_size} {runsc.stat().st_mtime_ns} on {os.uname().release}"
    known = msgspec.json.encode({"runsc": Trial(subject, "")})
    (tmp_path / "home/node/runtime-trials.json").write_bytes(known)
    before = calls(tmp_path)  # by mistake it is thought to work
    assert asyncio.run(names()) == (["bubblewrap"], ["bubblewrap"])
    assert calls(tmp_path) == before + 1  # for its version, to use it
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asyncio.run(names()) == (["bubblewrap"], ["bubblewrap"])
    assert find_leaks(tmp_path) == []
