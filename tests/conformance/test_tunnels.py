"""Tunnels: ports of sandboxes and of function containers, reached from outside."""

from __future__ import annotations

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


def test_a_port_is_forwarded_once(checks: Checks) -> None:
    kind, text = checks.value("forward_twice")
    assert "8000" in text, (kind, text)
