"""Lists of domains."""

from __future__ import annotations

import pytest

from homeport.kernel.domains import is_listed, pattern, plain
from homeport.kernel.errors import InvalidError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        (" *.example.com", "*.example.com"),
        ("*", "*"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("_dmarc.example", "_dmarc.example"),
        ("localhost", "localhost"),
    ],
)
def test_a_pattern_has_one_form(text: str, expected: str) -> None:
    assert pattern(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "*.",
        "**",
        "a.*.com",
        "*a.com",
        "a..b",
        "10.0.0.1",
        "10.0.0.0/8",
        "::1",
        "a b.com",
        "https://a.com",
        "a.com/x",
        "a.com:443",
        "-a.com",
        "a-.com",
        "a" * 64 + ".com",
        "a." * 130,
    ],
)
def test_what_is_no_domain(text: str) -> None:
    with pytest.raises(InvalidError, match="is not a domain"):
        pattern(text)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("example.com", True),
        ("a.example.com", False),
        ("example.com.evil.org", False),
        ("evilexample.com", False),
        ("a.wild.org", True),
        ("a.b.wild.org", True),
        ("wild.org", False),
        ("evilwild.org", False),
        ("", False),
    ],
)
def test_what_is_listed(name: str, listed: bool) -> None:
    assert is_listed(name, ["example.com", "*.wild.org"]) is listed


def test_a_star_is_every_name() -> None:
    assert is_listed("any.thing", ["*"])


def test_names_are_compared_without_case_and_the_last_dot() -> None:
    assert plain("A.Example.") == "a.example"
    with pytest.raises(ValueError, match="no room"):
        plain("a." * 200)
