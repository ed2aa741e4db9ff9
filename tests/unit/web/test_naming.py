"""Host names of web functions."""

from __future__ import annotations

import pytest

from homeport.kernel.errors import InvalidError
from homeport.web.naming import CHARS_MAX, check_domain, check_label, is_truncated, slug, subdomain


@pytest.mark.parametrize(
    ("text", "expected"),
    [("flask_app", "flask-app"), ("Text To__Speech", "text-to-speech"), ("-a-", "a"), ("é", "")],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_name_of_deployed_function() -> None:
    name = subdomain("ECorp", "prod", app="text_to_speech", function="flask_app")
    assert name == "ecorp-prod--text-to-speech-flask-app"


def test_method_is_named_with_its_class() -> None:
    assert subdomain("me", "", app="app", function="Greeter.greet") == "me--app-greeter-greet"


def test_label_takes_the_place_of_the_names() -> None:
    assert subdomain("me", "", app="app", function="f", label="mine") == "me--mine"


def test_what_is_tried_out_says_so() -> None:
    assert subdomain("me", "", app="app", function="f", dev_suffix="dev") == "me--app-f-dev"
    assert subdomain("me", "", app="a", function="f", label="x", dev_suffix="eva") == "me--x-eva"


def test_long_names_are_cut_and_told_apart() -> None:
    one = subdomain("me", "", app="a" * 60, function="one")
    two = subdomain("me", "", app="a" * 60, function="two")
    assert len(one) == len(two) == CHARS_MAX
    assert one[:56] == two[:56]
    assert one != two
    assert is_truncated(one)
    assert not is_truncated(subdomain("me", "", app="a", function="f"))


@pytest.mark.parametrize("label", ["Upper", "under_score", "-dash", "dash-", "dot.dot", "a" * 64])
def test_labels_that_no_host_name_can_have(label: str) -> None:
    with pytest.raises(InvalidError):
        check_label(label)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "a..b", "-a.example", "x" * 254])
def test_domains_that_are_none(name: str) -> None:
    with pytest.raises(InvalidError):
        check_domain(name)


def test_domain_of_ones_own() -> None:
    check_domain("api.example.com")
