"""Sandboxes, both generations: creation, standard streams, ends, names, tags, lists."""

from __future__ import annotations

import re

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import GVISOR

V1_ID = re.compile(r"sb-[0-9A-Za-z]{22}")
V2_ID = re.compile(r"sb-[0-7][0-9A-HJKMNP-TV-Z]{25}")


@pytest.fixture(params=["sandboxes", "sandboxes_v1"])
def checks(request: pytest.FixtureRequest, runner: Runner, client: Client) -> Checks:
    """What the program reported; clients that know one generation run it once."""
    if request.param == "sandboxes_v1" and client.release < (1, 6):
        pytest.skip("this client uses the first generation anyway")
    return runner.checks(client, request.param, script=True)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("prepare", 0),
        ("output", [3, "out\n", "err\n"]),
        ("partial_lines", "aébc\nd"),
        ("unread_output", [4 * 1024 * 1024, True, "end\n"]),
        (
            "lines_as_they_come",
            [line for n in "123" for line in (f"{n}\n", f"got answer {n}\n")],
        ),
        ("cat", [True, 0]),
        ("large_input", True),
        ("signalled", 137),
        ("running", [None, "SandboxTerminatedError", 137, 137]),
        ("terminate_twice", [137, 137]),
        ("finished_then_terminated", 5),
        ("timed_out", ["SandboxTimeoutError", 124]),
        ("entrypoint", ["entry\ngiven\n", "entry\ncmd\n"]),
        ("without_command", [None, 137]),
        ("no_such_program", 1),
        ("many_in_a_list", [True, True]),
        ("from_id", [None, 4, "hello\n"]),
        ("volumes", [0, "kept\n", "kept\nmore\n"]),
        ("local_files", "from here"),
        ("snapshot", [0, "kept\nmounted/usr/share/doc:\nonly\n"]),
        # under gVisor one for sidecars is there from the start, and leads nowhere before the first
        ("no_network", "lo peers" if GVISOR else "lo"),
        ("out_of_memory", 137),
        ("app_ends", [None, 137]),
        ("many_at_once", True),
    ],
)
def test_sandbox(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_ids_have_the_shape_of_their_generation(checks: Checks, client: Client) -> None:
    sandbox_id, code = checks.value("shapes")
    is_v2 = client.release >= (1, 6) and "sandboxes_v1" not in checks.completed.command
    assert (V2_ID if is_v2 else V1_ID).fullmatch(sandbox_id)
    assert code == 0


def test_input_after_the_end(checks: Checks) -> None:
    kind, text = checks.value("input_after_the_end")
    assert kind == "ValueError", text


def test_surroundings(checks: Checks) -> None:
    found = checks.value("surroundings")
    env = found["env"]
    assert (env["GREETING"], env["SECOND"], env["SHARED"]) == ("hallo", "two words", "second")
    assert env["MODAL_SANDBOX_ID"] == found["id"]
    assert env["MODAL_TASK_ID"].startswith("ta-")
    assert env["MODAL_IMAGE_ID"].startswith("im-")
    assert not {"MODAL_IS_REMOTE", "MODAL_SERVER_URL", "MODAL_TOKEN_ID"} & {*env}
    assert found["pwd"]


def test_unknown(checks: Checks, client: Client) -> None:
    kind, text = checks.value("unknown")
    assert kind == ("NotFoundError" if client.release >= (1, 2) else "GRPCError")
    assert "not found" in text


def test_tags_and_lists(checks: Checks, client: Client) -> None:
    found = checks.value("tags")
    assert found["tags"][:5] == [["one"], ["one", "two"], [], ["two"], ["one"]]
    assert found["tags"][5:] in ([], [{"only": "this"}])
    assert found["all"]
    assert found["left"] == [False, True]


def test_networks(checks: Checks) -> None:
    without, listed, *empty = checks.value("networks")
    assert without[2:] == ["refused", "refused"]  # cloud metadata, the node
    assert listed[1:] == ["refused", "refused", "refused"]
    assert listed[0] == without[0]
    assert all(found == ["refused"] * 4 for found in empty)


@pytest.mark.since("1.6")
def test_networks_changed_while_it_runs(checks: Checks) -> None:
    before, after = checks.value("networks_changed")
    assert after == [before[0], "refused"]


@pytest.mark.since("1.2")
def test_env_comes_last(checks: Checks) -> None:
    assert checks.value("new_env") == "a from env\n"


@pytest.mark.since("1.1.1")
def test_names(checks: Checks) -> None:
    found = checks.value("names")
    assert found["taken"][0] == "AlreadyExistsError"
    assert found["found"]
    assert found["again"]
    assert found["gone"][0] == "NotFoundError"
    assert found["bad"] == "InvalidError"


@pytest.mark.since("1.1.4")
def test_idle(checks: Checks) -> None:
    assert checks.value("idle") == 137


@pytest.mark.since("1.2")
def test_terminal(checks: Checks) -> None:
    code, text, errors = checks.value("terminal")
    assert code == 0
    assert errors == ""
    assert text.replace("\r\n", "\n").splitlines()[-1] == "read words"
    assert "24 80" in text


@pytest.mark.since("1.4.1")
def test_readiness(checks: Checks) -> None:
    assert checks.value("ready_port") is True
    assert checks.value("ready_command") is True
    assert checks.value("never_ready") == ["TimeoutError", "ConflictError"]
