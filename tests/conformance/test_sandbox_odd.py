"""Sandboxes asked for what is odd, too much, too late or wrong; arguments that are used seldom."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import GVISOR

MEBI = 1024 * 1024


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    """What the program reported."""
    return runner.checks(client, "sandbox_odd", script=True)


def invalid(client: Client) -> str:
    """The error of a bad request; older clients do not translate it."""
    return "InvalidError" if client.release >= (1, 3) else "GRPCError"


def kind_of(client: Client, name: str) -> str:
    return name if client.release >= (1, 3) else "GRPCError"


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("workdir_that_is_not_there", [0, "/not/there\n"]),
        ("seldom", [0, "done"]),
        ("waited_for_by_many", True),
        ("short_lives", ["SandboxTimeoutError", 124, "there\n"]),
        ("many_programs", True),
        ("large_streams", [0, True, True]),
        ("large_output_of_the_sandbox", [40 * MEBI + 1, 40 * MEBI, "end\n"]),
        ("not_text", [[97, 255, 98, 10], "UnicodeDecodeError"]),
        ("short_timeout", [True, "before\n", "0"]),
        ("written_while_snapshot", [True, True]),
    ],
)
def test_odd(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_bad_arguments_are_said(checks: Checks, client: Client) -> None:
    """Each in the client's own kind of error, with a sentence about what is wrong."""
    words = {
        "relative_workdir": "absolute",
        "timeout_0": "",
        "timeout_long": "between 1 and 86400",
        "cpu": "",
        "cpu_limit": "limit",
        "memory_limit": "limit",
        "port": "TCP port",
        "volume_at_root": "root",
        "no_secret": "conformance-no-such-secret",
        "no_image": "im-0000000000000000000000",
        "network": "'not a network'",
        "long_command": "65536",
        "no_app": "conformance-no-such-app",
        "domain": "outbound_cidr_allowlist",
        "idle": "",
        "custom_domain": "custom_domain=",
        "identity_token": "include_oidc_identity_token=",
        "option": "enable_docker",
        "virtual_machine": 'runtime="vm"',
    }
    found = checks.value("bad_arguments")
    assert {name: text for name, (_, text) in found.items() if words[name] not in text} == {}
    kinds = {"InvalidError", "NotFoundError", "UnimplementedError", "ValueError", "GRPCError"}
    if client.release >= (1, 3):
        kinds.remove("GRPCError")
    assert {name: kind for name, (kind, _) in found.items() if kind not in kinds} == {}


def test_odd_programs_are_said(checks: Checks, client: Client) -> None:
    words = {
        "none": "/no/such: No such file",
        "directory": "/etc: ",
        "not_executable": "/text: Permission denied",
        "bad_interpreter": "/bad: No such file",
        "no_words": "no command",
        "empty_word": "empty",
        "long": "65536",
        "workdir": "working directory /no/such: ",
        "workdir_file": "working directory /etc/passwd: Not a directory",
        "relative": "absolute",
        "secret": "conformance-no-such",
        "nul": "NUL",
    }
    found = checks.value("odd_programs")
    assert found.pop("still") == "works\n"
    assert {name: text for name, (_, text) in found.items() if words[name] not in text} == {}
    kinds = {name: kind for name, (kind, _) in found.items()}
    assert kinds.pop("secret") in ("NotFoundError", kind_of(client, "NotFoundError"))
    assert {*kinds.values()} <= {"InvalidError", invalid(client)}


def test_output_goes_where_the_client_runs(checks: Checks) -> None:
    assert checks.value("printed_here") == 0
    assert "seen here\n" in checks.completed.output
    assert "and here\n" in checks.completed.output


def test_it_ends_with_all_that_runs_in_it(checks: Checks) -> None:
    begun, hung, ends, code = checks.value("terminated_meanwhile")
    assert begun == "begun\n"
    assert hung == [False] * 3, ends
    assert ends["sandbox"][0] == "nothing"
    assert code == 137


def test_after_the_end(checks: Checks, client: Client) -> None:
    """What can be read still can; what needs it running says that it does not."""
    found = checks.value("after_the_end")
    fine = {name for name, (kind, _) in found.items() if kind == "nothing"}
    assert fine == {"tunnels", "set_tags", "terminate", "poll", "stdout"}, found
    kinds = {"NotFoundError", "ConflictError", "InvalidError", "FileNotFoundError"}
    if client.release < (1, 3):
        kinds.add("GRPCError")
    refused = {name: each for name, each in found.items() if name not in fine}
    assert {name: each for name, each in refused.items() if each[0] not in kinds} == {}
    assert all(text for _, text in refused.values())


def test_input_for_the_deaf(checks: Checks) -> None:
    code, kind = checks.value("input_of_the_deaf")
    assert code == 5
    assert kind in ("ConflictError", "ValueError", "InvalidError", "nothing")


def test_odd_tags(checks: Checks, client: Client) -> None:
    found = checks.value("odd_tags")
    if client.release >= (1, 2):
        assert found.pop(1) is True
    assert found == [True, True, [], [], *["InvalidError"] * 3]


@pytest.mark.since("1.4.3")
def test_tags_at_creation(checks: Checks) -> None:
    assert checks.value("tags_at_creation") == [True, "InvalidError"]


@pytest.mark.since("1.2")
def test_environment(checks: Checks) -> None:
    assert checks.value("environment") == [True, "unset"]
    assert checks.value("exec_environment") == "secret env unset\n"


@pytest.mark.since("1.1.1")
def test_odd_names(checks: Checks, client: Client) -> None:
    found = checks.value("odd_names")
    good = ["x" * 64, "A.b_c-1", "-", "0", "sb-0123456789abcdefghijkl"]
    assert {name for name, what in found.items() if what == "made"} == {*good}
    refused = {what for name, what in found.items() if name not in good}
    assert refused == {"InvalidError", kind_of(client, "InvalidError")}
    assert checks.value("same_name_at_once") == 1


@pytest.mark.since("1.6")
def test_named_later(checks: Checks) -> None:
    expected = [True, "AlreadyExistsError", "ConflictError", "InvalidError", True]
    assert checks.value("names_later") == expected


@pytest.mark.since("1.6.4")
def test_found_by_name_after_its_end(checks: Checks) -> None:
    assert checks.value("ended_by_name") == ["NotFoundError", True, True, 3]


@pytest.mark.since("1.6.4")
def test_runtime(checks: Checks) -> None:
    """gVisor, or an error that says that it is not there; never something else."""
    kind, text = checks.value("runtime")
    if GVISOR:
        assert (kind, text) == (0, True)
    elif kind != 0:
        assert kind == "InvalidError"
        assert "install runsc" in text


@pytest.mark.since("1.3.4")
def test_detached(checks: Checks) -> None:
    assert checks.value("detached") == ["ClientClosed", None, 4, "out\n"]
    assert checks.value("terminate_and_wait") == [137]


@pytest.mark.since("1.4.0")
def test_files(checks: Checks, client: Client) -> None:
    kept, wrong, works = checks.value("odd_paths")
    assert all(kept)
    assert works == "works\n"
    words = {
        "relative": "absolute",
        "empty": "absolute",
        "too_long": "File name too long",
        "nul": "null byte",
        "loop": "Too many levels of symbolic links",
        "fifo": "not a regular file",
        "socket_write": "/odd/fifo",
        "proc": "/proc/self/mem",
        "full": "not a regular file",
        "remove_root": "root directory",
        "remove_proc": "/proc/self",
    }
    if GVISOR:  # whose own /proc, /dev and pipes are not seen from outside
        words |= {"full": "", "proc": "", "remove_proc": "", "fifo": "", "socket_write": ""}
    assert {name: text for name, (_, text) in wrong.items() if words[name] not in text} == {}
    bad = {name: kind for name, (kind, _) in wrong.items() if "SandboxFilesystem" not in kind}
    assert {*bad} <= {"relative", "empty", *(["full", "socket_write"] if GVISOR else [])}, wrong
    assert checks.value("files_at_once") is True
    assert checks.value("huge_file") == [True, True, True]
    kind, text = checks.value("read_only_places")
    assert kind == "SandboxFilesystemPermissionError"
    assert "/data/file" in text


@pytest.mark.since("1.5")
def test_options_of_snapshots(checks: Checks) -> None:
    assert checks.value("options_of_snapshots") == [0, "x\n", "InvalidError", "InvalidError"]


@pytest.mark.since("1.6.4")
def test_what_there_is_not_is_said(checks: Checks) -> None:
    found = checks.value("refused")
    assert {kind for kind, _ in found.values()} == {"UnimplementedError"}, found
    assert "policies" in found["policy"][1]
    assert "TaskSetOutboundPolicy" in found["policy_later"][1]
    assert "keys" in found["key"][1]


def test_lists(checks: Checks, client: Client) -> None:
    mine, unique, (kind, text) = checks.value("listed_everywhere")
    assert (mine, unique) == (True, True)
    assert kind == ("NotFoundError" if client.release >= (1, 2) else "GRPCError")
    assert "ap-0000000000000000000000" in text


@pytest.mark.since("1.5")
def test_a_watch_tells_of_each_file(checks: Checks) -> None:
    assert checks.value("watched_crowd") == [False, 0, True]


def test_files_of_older_clients(checks: Checks, client: Client) -> None:
    if client.release >= (1, 6):
        pytest.skip("this client no longer has them")
    found = checks.value("old_api")
    assert found.pop("large") is True
    assert found == {
        "open_directory": "IsADirectoryError",
        "open_below_file": "NotADirectoryError",
        "open_exclusive": "FileExistsError",
        "open_mode": "ValueError",
        "ls_file": "NotADirectoryError",
        "mkdir_existing": "FileExistsError",
        "mkdir_orphan": "FileNotFoundError",
        "rm_missing": "FileNotFoundError",
        "rm_full": "FilesystemExecutionError",
        "watch_missing": "FileNotFoundError",
    }
