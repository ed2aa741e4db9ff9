"""Tunnels: ports of sandboxes and of function containers, reached from outside."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

pytestmark = pytest.mark.root


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    return runner.checks(client, "tunnels", str(runner.server.home / "ca.pem"), script=True)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("encrypted", ["echo one", True]),
        ("loopback", ["echo two", "echo too"]),
        ("http", [200, True]),
        ("usual_port", 200),
        ("h2", ["h2", "echo three"]),
        ("several", [[8000, 8001, 8002], 3]),
        ("without", {}),
        ("after_the_end", ["echo x", "refused"]),
        ("forward_tls", "from the container: hello"),
        ("forward_tcp", "from the container: hello"),
    ],
)
def test_tunnel(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


@pytest.mark.since("1.3.5")
def test_a_port_that_is_said_to_answer(checks: Checks) -> None:
    assert checks.value("forward_flash") == "from the container: hello"


def test_a_port_is_forwarded_once(checks: Checks) -> None:
    kind, text = checks.value("forward_twice")
    assert "8000" in text, (kind, text)


def _told(answer: list[Any], header: str = "X-Verified-User-Data") -> list[str]:
    return [value for name, value in answer[1]["headers"] if name == header]


@pytest.fixture
def connected(checks: Checks) -> dict[str, Any]:
    return checks.value("connect_tokens")


@pytest.mark.since("1.2.0")
def test_a_token_leads_to_the_program(connected: dict[str, Any]) -> None:
    status, asked, cookies = connected["first"]
    assert (status, asked["port"], asked["path"]) == (203, 8080, "/a/b?c=d%20e&f")
    assert cookies == ["a=1", "b=2"]
    assert _told(connected["first"]) == ["somebody"]
    assert _told(connected["first"], "Authorization") == []
    posted = connected["posted"][1]
    assert (posted["method"], posted["body"]) == ("POST", "some data")
    assert _told(connected["posted"], "X-Other") == ["x"]
    assert connected["chunked"][:2] == [200, "onetwo"]


@pytest.mark.since("1.2.0")
def test_a_token_in_the_query(connected: dict[str, Any]) -> None:
    assert connected["query"][1]["path"] == "/q?x=1&y=2"
    assert connected["websocket"] == ["101", "somebody hi"]


@pytest.mark.since("1.2.0")
def test_what_is_verified_cannot_be_forged(connected: dict[str, Any], client: Client) -> None:
    assert _told(connected["query"]) == ["somebody"]
    assert [value for _, value in connected["underscores"] if value == "forged"] == []
    assert connected["nothing_said"] == []
    kind, text = connected["line_break"]
    wanted = "InvalidError" if client.release >= (1, 3) else "GRPCError"
    assert (kind, "line breaks" in text) == (wanted, True), text


@pytest.mark.since("1.2.0")
@pytest.mark.parametrize("way", ["without", "wrong", "of_another"])
def test_without_its_token_nobody_comes_in(connected: dict[str, Any], way: str) -> None:
    assert connected[way][0] == 401


@pytest.mark.since("1.2.0")
def test_the_door_is_closed_after_the_end(connected: dict[str, Any]) -> None:
    assert connected["afterwards"] == "URLError"


@pytest.mark.since("1.5.0")
def test_a_token_names_a_port(connected: dict[str, Any]) -> None:
    assert connected["second"][1]["port"] == 9090
    assert json.loads(_told(connected["second"])[0]) == {"user": "ü", "n": 1}
    assert connected["same_url"]
    assert connected["nobody_listens"][0] == 502


@pytest.mark.since("1.4.3")
def test_who_may_come_in(checks: Checks) -> None:
    assert checks.value("inbound") == ["echo in", "echo in", 502] + ["closed"] * 3
    kind, text = checks.value("inbound_mistake")
    assert (kind, "is not a network" in text) == ("InvalidError", True), text
