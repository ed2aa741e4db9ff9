"""Images whose builds take minutes: with ``--all-clients`` or ``-m slow``."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def _asked_for(request: pytest.FixtureRequest) -> None:
    config = request.config
    if not config.getoption("--all-clients") and "slow" not in config.option.markexpr:
        pytest.skip("takes minutes; run with --all-clients or -m slow")


@pytest.fixture
def checks(_asked_for: None, runner: Runner, client: Client) -> Checks:
    return runner.checks(client, "images_more", script=True)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("slim", [True, [True] * 5]),
        ("requirements", ["1.16.0", True]),
        ("pyproject", [True, True, None]),
        ("poetry", "1.17.0"),
        ("add_python", [True, "/usr/local", True]),
    ],
)
def test_method(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


@pytest.mark.since("1.1.0")
@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("uv_requirements", ["1.16.0", True]),
        ("uv_sync", ["3.20", True, True, "/.uv/.venv"]),
    ],
)
def test_uv(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


@pytest.mark.parametrize("version", ["2023.12", "2024.04", "2024.10", "2025.06", "2026.10"])
def test_image_builder_versions(checks: Checks, client: Client, version: str) -> None:
    is_old = version <= "2024.10"
    if is_old != (client.release < (1, 1)) or (version == "2026.10" and client.release < (1, 6, 3)):
        pytest.skip("run with the other client")
    assert checks.value(f"builder_{version}") == [True, True]


@pytest.mark.since("1.6.0")
def test_from_nothing(checks: Checks) -> None:
    assert checks.value("scratch")
