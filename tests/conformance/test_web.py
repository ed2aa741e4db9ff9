"""Web functions, asked by real HTTP clients."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner, Started

URLS = re.compile(r"^URLS (\{.*\})$", re.MULTILINE)


class Site:
    """The web functions of the running program."""

    def __init__(self, urls: dict[str, str], program: Started) -> None:
        self.urls = urls
        self.program = program

    def ask(
        self, name: str, path: str = "/", method: str = "GET", **options: object
    ) -> httpx.Response:
        """One request; ``*.localhost`` is this machine, whatever the resolver thinks."""
        url = httpx.URL(self.urls[name])
        headers = {"host": url.netloc.decode(), **options.pop("headers", {})}  # type: ignore[dict-item]
        here = url.copy_with(host="127.0.0.1")
        with httpx.Client(timeout=60, http2=bool(options.pop("http2", False))) as client:
            return client.request(method, f"{here}".rstrip("/") + path, headers=headers, **options)


@pytest.fixture(scope="module")
def site(runner: Runner, client: Client) -> Iterator[Site]:
    program = runner.start(client, "web.py")
    program.wait_for(lambda output: URLS.search(output) is not None)
    found = URLS.search(program.output())
    assert found is not None
    yield Site(json.loads(found[1]), program)
    program.interrupt(presses=3)


def test_urls_say_workspace_app_and_function(site: Site) -> None:
    assert re.fullmatch(
        r"http://homeport--conformance-web-hello-dev\.localhost:\d+", site.urls["hello"]
    )
    assert site.urls["hello"].rpartition(":")[0] in site.program.output().partition("URLS ")[0]


def test_application_sees_the_request(site: Site) -> None:
    answer = site.ask("bare", "/a/b%20c?x=1", method="PUT", content=b"12345")
    assert answer.status_code == 201
    assert answer.text == "PUT /a/b c x=1 5"
    assert answer.headers.get_list("x-one") == ["1", "2"]


def test_get(site: Site) -> None:
    answer = site.ask("hello", "/?name=you")
    assert (answer.status_code, answer.json()) == (200, {"hello": "you"})


def test_post(site: Site) -> None:
    answer = site.ask("add", method="POST", json={"a": 1, "b": 2})
    assert (answer.status_code, answer.json()) == (200, {"sum": 3})


def test_other_method_is_the_applications_business(site: Site) -> None:
    assert site.ask("add").status_code == 405
    assert site.ask("hello", "/nowhere").status_code == 404


def test_unknown_host(site: Site) -> None:
    answer = site.ask("hello", headers={"host": "homeport--nothing-here.localhost"})
    assert answer.status_code == 404
    assert "no web function at homeport--nothing-here.localhost" in answer.text
