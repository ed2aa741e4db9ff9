"""Arguments on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import PROGRAMS, Runner

PROGRAM = "entrypoints.py"


@pytest.mark.parametrize(
    ("target", "arguments", "expected"),
    [
        ("typed", ["--name", "x"], "typed: ['x', 1, 0.5, False]"),
        (
            "typed",
            ["--name", "y", "--count", "3", "--ratio", "2", "--flag"],
            "typed: ['y', 3, 2.0, True]",
        ),
        ("dated", ["--when", "2024-02-29"], "dated: 2024-02-29T00:00:00"),
        ("free", ["a", "--b", "c"], "free: ['a', '--b', 'c']"),
        ("calling", ["--word", "hey"], "calling: hey hey hey"),
        ("repeat", ["--word", "ho"], "said: ho ho"),
        ("Speaker.speak", ["--word", "hi", "--name", "Ann"], "spoken: Ann says hi"),
    ],
)
def test_arguments(
    runner: Runner, client: Client, target: str, arguments: list[str], expected: str
) -> None:
    done = runner.modal_run(client, f"{PROGRAM}::{target}", *arguments).succeeded()
    assert expected in done.stdout


def test_missing_option(runner: Runner, client: Client) -> None:
    done = runner.modal_run(client, f"{PROGRAM}::typed")
    assert done.returncode == 2
    assert "--name" in done.output


def test_exit_code_of_an_entry_point(runner: Runner, client: Client) -> None:
    assert runner.modal_run(client, f"{PROGRAM}::failing").returncode == 7


def test_exception_of_an_entry_point(runner: Runner, client: Client) -> None:
    done = runner.modal_run(client, f"{PROGRAM}::raising")
    assert done.returncode == 1
    assert "raised on this side" in done.output


def test_uncaught_exception_of_a_function_is_shown_with_its_lines(
    runner: Runner, client: Client
) -> None:
    done = runner.modal_run(client, f"{PROGRAM}::raising_there")
    assert done.returncode == 1
    assert "/root/entrypoints.py" in done.output
    assert 'raise LookupError(f"no such word: {word}")' in done.output
    assert "LookupError: no such word: hapax" in done.output


def test_app_in_pytest(runner: Runner, client: Client, tmp_path: Path) -> None:
    # Away from here: pytest would read this suite's own configuration.
    for name in ("app_under_pytest.py", "pytest_of_an_app.py"):
        shutil.copy(PROGRAMS / name, tmp_path)
    done = runner.module(client, "pytest", "-q", f"{tmp_path}/pytest_of_an_app.py").succeeded()
    assert "2 passed" in done.stdout
