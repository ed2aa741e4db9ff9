"""A lot at once, dying containers, and requests that cannot be carried out."""

from __future__ import annotations

import re

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner

pytestmark = pytest.mark.newest


def test_a_thousand_calls_from_fifty_threads(runner: Runner, client: Client) -> None:
    assert runner.checks(client, "stress").value("threads") == sum(range(1, 1001))


def test_map_over_dying_containers(runner: Runner, client: Client) -> None:
    found = runner.checks(client, "stress").value("dying_map")
    dead = [found[n] for n in (3, 11, 17)]
    assert [x for n, x in enumerate(found) if n not in (3, 11, 17)] == [
        n for n in range(24) if n not in (3, 11, 17)
    ]
    assert all(isinstance(text, str) and "3" in text for text in dead)


def test_out_of_memory_says_the_limit(runner: Runner, client: Client) -> None:
    error = runner.checks(client, "stress").error("memory")
    assert "memory" in error["message"].lower()
    assert "256" in error["message"]


def test_out_of_memory_while_starting_says_the_limit(runner: Runner, client: Client) -> None:
    error = runner.checks(client, "stress").error("memory_at_start")
    assert "Out of memory: the container used more than its limit of 200 MiB" in error["message"]


def test_within_the_memory_limit(runner: Runner, client: Client) -> None:
    assert runner.checks(client, "stress").value("memory_within") == 4


def test_hundred_thousand_lines(runner: Runner, client: Client) -> None:
    checks = runner.checks(client, "stress")
    assert checks.value("lines") == 100_000
    numbers = [int(n) for n in re.findall(r"line (\d{6})", checks.completed.stdout)]
    assert numbers == list(range(100_000))


def test_a_line_of_a_million_characters(runner: Runner, client: Client) -> None:
    checks = runner.checks(client, "stress")
    assert checks.value("long_line") == 1_000_000
    text = checks.completed.stdout.replace("\n", "")
    assert f"<{'x' * 1_000_000}>" in text


def test_what_a_container_printed_before_it_died(runner: Runner, client: Client) -> None:
    checks = runner.checks(client, "stress")
    assert "exited with code 7" in checks.error("last_words")["message"]
    found = re.findall(r"last word (\d{4})", checks.completed.stdout)
    attempts = len(found) // 1000
    assert found == [f"{n:04d}" for n in range(1000)] * attempts
    assert attempts > 0


def kinds_of(client: Client, kind: str) -> list[str]:
    """What that exception of the newest client is in ``client``."""
    kinds = [kind]
    if client.release < (1, 5) and kind == "ImageBuildError":
        kinds = ["RemoteError"]
    if client.release < (1, 3):  # some of the server's errors are passed on as they come
        kinds.append("GRPCError")
    return kinds


@pytest.mark.parametrize(
    ("check", "kind", "mention"),
    [
        ("unknown_app", "NotFoundError", "no-such-app"),
        ("unknown_class", "NotFoundError", "no-such-app"),
        ("unknown_secret", "NotFoundError", "no-such-secret"),
        ("unknown_volume", "NotFoundError", "no-such-vol"),
        ("unknown_environment", "NotFoundError", "no-such-environment"),
        ("unknown_call", "NotFoundError", "fc-0000"),
        ("malformed_call", "Error", "fc-!"),
        ("wrong_kind_of_id", "Error", "fc-../etc"),
        ("unknown_gpu", "InvalidError", "NOSUCHGPU"),
        ("unknown_python", "ImageBuildError", "uv python install 3.99"),
        ("python_too_old", "InvalidError", "3.7"),
        ("unknown_image", "ImageBuildError", "nowhere.invalid"),
        ("unknown_package", "ImageBuildError", ""),
        ("failing_command", "ImageBuildError", ""),
        ("too_large", "InvalidError", "message_bytes_max"),
    ],
)
def test_mistake(runner: Runner, client: Client, check: str, kind: str, mention: str) -> None:
    error = runner.checks(client, "mistakes", script=True).error(check)
    assert {*kinds_of(client, kind)} & {*error["bases"]}
    assert mention in error["message"]
    assert len(error["message"]) > 10


def test_without_a_mistake_it_runs(runner: Runner, client: Client) -> None:
    assert runner.checks(client, "mistakes", script=True).value("no_mistake") == "ran"


def test_more_than_a_node_has_is_a_warning(runner: Runner, client: Client) -> None:
    checks = runner.checks(client, "mistakes", script=True)
    assert checks.value("more_than_a_node") == "ran"
    text = " ".join(checks.completed.output.split())
    assert "asks for 1000 cores; the largest node has" in text
    assert "asks for 100000000 MiB of memory; the largest node has" in text


@pytest.mark.parametrize("name", ["MODAL_TOKEN_SECRET", "MODAL_TOKEN_ID"])
def test_wrong_token(runner: Runner, client: Client, name: str) -> None:
    done = runner.modal_run(client, "hello.py", environ={name: "not-the-one"})
    assert done.returncode == 1
    assert "token" in done.output.lower()
    assert "Traceback" not in done.output
