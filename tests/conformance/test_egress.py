"""Sandboxes with a list of domains: what they reach, and the ways round the list."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.internet import Internet
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.server import GVISOR, server_with

pytestmark = [pytest.mark.root, pytest.mark.since("1.5.0")]
NAMES = {
    "listed.example": "{net}.2",
    "a.b.wild.example": "{net}.2",
    "wild.example": "{net}.2",
    "evilwild.example": "{net}.2",
    "other.example": "{net}.3",
    "dns.example": "{net}.3",
    "secret.wild.example": "{net}.3",
    "loopback.wild.example": "{loopback}",
    "metadata.wild.example": "169.254.169.254",
    "node.wild.example": "{net}.254",
    "containers.wild.example": "10.87.0.1",
}
DENIED = "TLS: TLSV1_ALERT_ACCESS_DENIED"
BLOCKED = "EHOSTUNREACH"
UNKNOWN = "gaierror"


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    with Internet(NAMES) as made:
        yield made


@pytest.fixture(scope="module")
def runner(internet: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    environ = {"HOMEPORT_NAME_SERVERS": internet.name_server}
    with server_with(tmp_path_factory.mktemp("guarded"), environ) as server:
        yield Runner(server, tmp_path_factory.mktemp("egress"))


@pytest.fixture
def checks(runner: Runner, client: Client, internet: Internet) -> Checks:
    return runner.checks(client, "egress", internet.net, script=True)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("listed", "server 2 sni listed.example"),
        ("listed_upper", "server 2 sni LISTED.Example"),
        ("wildcard", "server 2 sni a.b.wild.example"),
        ("listed_name_at_other", "server 2 sni listed.example"),
        ("listed_record", ["code", 0, "answers", 1]),
    ],
)
def test_listed_domains_are_reached(checks: Checks, way: str, expected: object) -> None:
    assert checks.value("ways_out")[way] == expected


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("above_wildcard", UNKNOWN),
        ("beside_wildcard", UNKNOWN),
        ("not_listed", UNKNOWN),
        ("address_of_listed", DENIED),
        ("address_of_other", DENIED),
        ("other_name_at_listed", DENIED),
        ("longer_name", DENIED),
        ("http", BLOCKED),
        ("other_port", BLOCKED),
        ("names_elsewhere", ["code", 3, "answers", 0]),
        ("names_by_tcp", ["code", 3, "answers", 0]),
        ("names_at_other_port", BLOCKED),
        ("names_over_tls", BLOCKED),
        ("names_over_https", DENIED),
        ("text_record", ["code", 0, "answers", 0]),
        ("quic", BLOCKED),
        ("six_mapped", BLOCKED),
    ],
)
def test_ways_round_the_list_fail(checks: Checks, way: str, expected: object) -> None:
    found = checks.value("ways_out")[way]
    if GVISOR and way in ("quic", "names_at_other_port"):
        assert found in (expected, "TimeoutError")  # its UDP does not hear of a refusal
    else:
        assert found == expected


@pytest.mark.parametrize(
    "way", ["no_tls", "six", "ping", "to_loopback", "to_metadata", "to_node", "to_containers"]
)
def test_no_listed_name_leads_inside(checks: Checks, way: str) -> None:
    """Neither does what is no TLS, nor IPv6, lead out."""
    found = str(checks.value("ways_out")[way])
    assert found != "open"
    assert "server" not in found
    assert "\\x00\\x00" not in found  # an answer to a ping


def test_nothing_was_told_to_others(checks: Checks, internet: Internet) -> None:
    """No question for a name outside the list left, in whatever way it was sent."""
    assert checks.value("ways_out")["forged"] in ("sent", "EPERM")
    assert internet.datagrams == []
    assert not [name for name in internet.asked if "tunnel" in name or name.endswith(" TXT")]


def test_both_lists_add_up(checks: Checks) -> None:
    found = checks.value("with_networks")
    assert found["listed"] == "server 2 sni listed.example"
    assert found["address_of_other"] == "server 3 sni None"
    assert found["names_over_tls"] == "b'server 3\\n'"
    assert (found["http"], found["address_of_listed"]) == (BLOCKED, DENIED)


def test_every_domain_is_no_address(checks: Checks) -> None:
    found = checks.value("every_domain")
    assert found["listed"] == "server 2 sni listed.example"
    assert found["other"] == "server 3 sni other.example"
    assert (found["address_of_other"], found["http"]) == (DENIED, BLOCKED)
    assert "server" not in found["to_metadata"] + found["to_node"]


def test_an_empty_list_is_no_domain(checks: Checks) -> None:
    found = checks.value("no_domain")
    assert "server" not in str(found), found


def test_lists_change_while_it_runs(checks: Checks) -> None:
    heard, seen = checks.value("changed")
    assert heard == ["server 2 sni listed.example", "one", "two", "cut"]
    listed, other = "server 2 sni listed.example", "server 3 sni other.example"
    before, both, only_other, network, everything = seen
    assert (before["listed"], before["other"], before["address"]) == (listed, UNKNOWN, BLOCKED)
    assert (both["listed"], both["other"], both["address"]) == (listed, other, BLOCKED)
    assert (only_other["listed"], only_other["other"]) == (UNKNOWN, other)
    assert (network["listed"], network["address"]) == (UNKNOWN, "b'server 3\\n'")
    assert (everything["listed"], everything["other"]) == (listed, other)


def test_what_is_no_domain_is_refused(checks: Checks) -> None:
    for kind, text in checks.value("mistakes"):
        assert (kind, "is not a domain" in text) == ("InvalidError", True), text
