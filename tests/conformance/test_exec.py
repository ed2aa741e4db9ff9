"""Programs in containers: exec in sandboxes, streams, ends and terminals, files, the commands."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import GVISOR

MEBI = 1024 * 1024
TABLE = [
    ("output", [3, "out\n", "err\n"]),
    ("poll", [None, 9, 9]),
    ("signalled", 137),
    ("secrets", "1 second\n"),
    ("no_shell_words", "a b||*|ü|"),
    ("binary", ["bytes", 1000]),
    ("by_line", ["a\n", "bc\n", "d"]),
    ("unread", [0, 8 * MEBI, True, "end\n"]),
    ("both_ways", [True, 0]),
    ("large_input", [True, 0]),
    ("timed_out", [True, True]),
    ("background", [0, "started\n"]),
    ("at_once", True),
    ("devnull", 6),
]


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    """What the program reported."""
    return runner.checks(client, "execs", script=True)


@pytest.mark.parametrize(("check", "expected"), TABLE)
def test_exec(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_a_missing_program_is_said(checks: Checks, client: Client) -> None:
    kind, text = checks.value("missing_program")
    assert kind == wrong(client)
    assert "no-such-program" in text


def wrong(client: Client) -> str:
    """The error of a bad request; older clients do not translate it."""
    return "InvalidError" if client.release >= (1, 3) else "GRPCError"


def test_working_directory(checks: Checks, client: Client) -> None:
    assert checks.value("workdir") == ["/tmp\n", wrong(client)]


@pytest.mark.since("1.2.0")
def test_env(checks: Checks) -> None:
    assert checks.value("env") == "two words\n"


@pytest.mark.since("1.2.0")
def test_terminal(checks: Checks) -> None:
    (tty, rows, columns, term, everything), code = checks.value("terminal")
    assert tty.startswith("/dev/pts/")
    assert (int(rows) > 0, int(columns) > 0, bool(term)) == (True, True, True)
    assert (everything, code) == ("all", 0)
    assert checks.value("terminal_input") == ["typed\ntyped\n", 0]


def test_rights_are_those_of_the_container(checks: Checks) -> None:
    same, status = checks.value("limits")
    assert same, status
    if not GVISOR:  # whose kernel is the filter
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status


def test_programs_end_with_their_sandbox(checks: Checks) -> None:
    code, later = checks.value("ended")
    assert code == 137
    assert later in ("NotFoundError", "GRPCError")


@pytest.mark.since("1.4.0")
def test_files(checks: Checks) -> None:
    assert checks.value("files") == ["häl\nlo", [0, 1]]
    assert checks.value("large_file") == [True, True]
    assert checks.value("copies") is True


@pytest.mark.since("1.4.0")
def test_files_need_nothing_of_the_image(checks: Checks) -> None:
    text, later = checks.value("files_without_anything")
    assert text == "still"
    assert later == "NotFoundError"


@pytest.mark.since("1.4.3")
def test_listing(checks: Checks) -> None:
    assert checks.value("listing") == {
        "kinds": [
            ["file", "/listed/file", "file", None],
            ["inner", "/listed/inner", "directory", None],
            ["link", "/listed/link", "symlink", "file"],
        ],
        "file": [6, "0640", "nobody", "mail", 0o100640],
        "recent": True,
        "stat": ["symlink", "file"],
    }


@pytest.mark.since("1.4.3")
def test_directories(checks: Checks) -> None:
    made, refused, gone = checks.value("directories")
    assert made == ["/dirs", "/dirs/a", "/dirs/a/b"]
    assert refused == "SandboxFilesystemDirectoryNotEmptyError"
    assert gone == "SandboxFilesystemNotFoundError"


@pytest.mark.since("1.4.0")
def test_errors_of_files(checks: Checks, client: Client) -> None:
    wanted = {
        "read_missing": "NotFound",
        "read_directory": "IsADirectory",
        "read_device": "",
        "write_directory": "IsADirectory",
        "write_below_file": "NotADirectory",
        "write_proc": "Permission",
    }
    if client.release >= (1, 4, 3):
        wanted |= {
            "list_missing": "NotFound",
            "list_file": "NotADirectory",
            "stat_missing": "NotFound",
            "make_existing": "PathAlreadyExists",
            "make_orphan": "NotFound",
            "make_below_file": "NotADirectory",
            "remove_missing": "NotFound",
            "remove_full": "DirectoryNotEmpty",
        }
    if GVISOR:  # its /dev is not among the files that are seen from outside
        wanted["read_device"] = "NotFound"
    names = {name: f"SandboxFilesystem{kind}Error" for name, kind in wanted.items()}
    assert checks.value("file_errors") == names


@pytest.mark.since("1.5.0")
def test_watching(checks: Checks) -> None:
    still_running, seen = checks.value("watching")
    assert not still_running
    assert ["Create", "/watched/in"] in seen
    assert ["Create", "/watched/in/f"] in seen
    assert ["Modify", "/watched/in/f", "/watched/g"] in seen
    assert ["Remove", "/watched/g"] in seen


def test_files_of_older_clients(checks: Checks, client: Client) -> None:
    if client.release >= (1, 6):
        pytest.skip("this client no longer has them")
    assert checks.value("opened") == ["one\n", "two\nthree\n", "two", 15, "inside"]
    assert checks.value("old_directories") == [["a", "f"], "FileNotFoundError", "FileNotFoundError"]


def test_from_a_container(checks: Checks, client: Client) -> None:
    wanted = ["got this\n", 3]
    if client.release >= (1, 4):
        wanted.append("text")
    assert checks.value("from_inside") == wanted


def test_command_line(checks: Checks) -> None:
    # without a terminal the command does not pass the program's exit code on
    listed, code, executed, stopped, output = checks.value("command_line")
    assert (listed, code, executed, stopped) == (True, 0, True, 0), output
