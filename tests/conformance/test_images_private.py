"""Packages of private repositories: with ``-m slow`` or ``--all-clients`` (git is installed)."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def checks(request: pytest.FixtureRequest, runner: Runner, client: Client) -> Checks:
    config = request.config
    if not config.getoption("--all-clients") and "slow" not in config.option.markexpr:
        pytest.skip("takes minutes; run with --all-clients or -m slow")
    return runner.checks(client, "images_private", script=True)


def test_repositories_are_opened_with_the_tokens_of_secrets(checks: Checks) -> None:
    assert checks.value("private") == {
        "said": ["tagged", "newest"],
        "seen": ["github.com/ecorp/one", "gitlab.com/ecorp/two"],
        "variables": [],
        "left": [],
        "recorded": True,
    }


def test_a_wrong_token_is_said_by_git(checks: Checks) -> None:
    message = checks.error("refused")["message"]
    assert "github.com/ecorp/one" in message
    assert "returned exit code" in message
    assert "not-it" not in message


def test_a_missing_token_is_named(checks: Checks) -> None:
    assert "GITHUB_TOKEN env var not set" in checks.error("forgotten")["message"]
