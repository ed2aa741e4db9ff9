"""What differs by client version."""

from __future__ import annotations

import pytest

from homeport.kernel.errors import ConflictError
from homeport.rpc.versions import (
    UNKNOWN,
    at_least,
    image_builder_version_for,
    knows_builder,
    parse,
    require_supported,
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.6.4", (1, 6, 4)),
        ("1.10.0", (1, 10, 0)),
        ("1.3", (1, 3, 0)),
        ("1.5.4.dev3", (1, 5, 4)),
        ("", UNKNOWN),
        ("newest", UNKNOWN),
        ("1" * 5000 + ".1.1", UNKNOWN),
    ],
)
def test_parses_what_clients_say(text: str, version: tuple[int, int, int]) -> None:
    assert parse(text) == version


def test_compares_numbers_not_texts() -> None:
    assert at_least("1.10.0", (1, 9, 9))
    assert not at_least("1.9.9", (1, 10, 0))
    assert not at_least("", (1, 0, 0))


@pytest.mark.parametrize(
    ("client", "builder"),
    [
        ("1.0.0", "2024.10"),
        ("1.0.5", "2024.10"),
        ("1.1.0", "2025.06"),
        ("1.6.4", "2025.06"),
        ("", "2025.06"),
    ],
)
def test_answers_a_builder_version_the_client_knows(client: str, builder: str) -> None:
    assert image_builder_version_for(client) == builder
    assert knows_builder(client, builder)


@pytest.mark.parametrize(
    ("client", "builder", "known"),
    [
        ("1.0.5", "2025.06", False),
        ("1.1.0", "2025.06", True),
        ("1.6.2", "2026.10", False),
        ("1.6.3", "2026.10", True),
        ("1.6.4", "2099.01", False),
    ],
)
def test_knows_since_when_a_builder_version_is_known(
    client: str, builder: str, known: bool
) -> None:
    assert knows_builder(client, builder) is known


@pytest.mark.parametrize("client", ["1.0.0", "1.6.4", "2.0.0", ""])
def test_serves_clients_from_1_0_on(client: str) -> None:
    require_supported(client)


def test_refuses_older_clients() -> None:
    with pytest.raises(ConflictError, match=r"modal client 0\.77\.0 is too old"):
        require_supported("0.77.0")
