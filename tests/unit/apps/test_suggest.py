"""What is suggested for a name that was not found."""

from __future__ import annotations

import pytest

from homeport.apps.suggest import QUERY_MAX, SUGGESTIONS_MAX, Name, suggest

NAMES = [
    Name("my-app", "double"),
    Name("my-app", "triple"),
    Name("my-app", "Greeter.*"),
    Name("other", "double"),
    Name("quite-different", "train"),
]


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("my-app/duoble", Name("my-app", "double")),
        ("my_app/Double", Name("my-app", "double")),
        ("my-app.double", Name("my-app", "double")),
        ("my-app::triple", Name("my-app", "triple")),
        ("my-app/greeter", Name("my-app", "Greeter.*")),
        ("elsewhere/train", Name("quite-different", "train")),
        ("trane", Name("quite-different", "train")),
    ],
)
def test_the_likeliest_comes_first(query: str, first: Name) -> None:
    assert suggest(query, NAMES, 4)[0] == first


def test_apps_have_no_app() -> None:
    assert suggest("histroy", [Name("", "history"), Name("", "other")], 4) == [Name("", "history")]


@pytest.mark.parametrize("query", ["", "/", "zzzzzz", "x" * 100_000])
def test_nothing_is_suggested_for_what_is_like_nothing(query: str) -> None:
    assert suggest(query, NAMES, 4) == []


def test_not_more_than_wanted() -> None:
    names = [Name("app", f"double{number}") for number in range(100)]
    assert len(suggest("app/double", names, 3)) == 3
    assert len(suggest("app/double", names, 1000)) == SUGGESTIONS_MAX
    assert QUERY_MAX < 1000
