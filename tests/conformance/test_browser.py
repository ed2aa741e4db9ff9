"""Web functions in a real browser: pages, scripts of other origins, events, WebSockets, TLS.

``make browser`` installs Chromium (some 300 MB) and runs this.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from tests.conformance.harness.browser import PROGRAM, Page, browser
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.sites import Site, running

pytestmark = [
    pytest.mark.newest,
    pytest.mark.skipif(not PROGRAM, reason="needs Chromium: `make browser` installs it"),
]


@pytest.fixture(scope="module")
def site(runner: Runner, client: Client) -> Iterator[Site]:
    with running(runner, client, "web.py") as site:
        yield site


def see(work: Callable[[Page], Awaitable[Any]], *options: str) -> Any:
    """What ``work`` finds in a browser."""

    async def look() -> Any:
        async with browser(*options) as page:
            return await work(page)

    return asyncio.run(look())


def test_page(site: Site) -> None:
    async def look(page: Page) -> str:
        await page.open(site.urls["served"])
        return await page.run("document.body.innerText")

    assert see(look).strip() == "from a web server"


def test_docs_page_and_its_schema(site: Site) -> None:
    async def look(page: Page) -> tuple[str, list[str]]:
        await page.open(site.urls["greet"] + "/docs")
        schema = "fetch('/openapi.json').then(r => r.json()).then(s => Object.keys(s.paths))"
        return await page.run("document.title"), await page.run(schema)

    title, paths = see(look)
    assert "Swagger UI" in title
    assert paths == ["/"]


def test_script_of_another_origin(site: Site) -> None:
    """CORS is the application's: the endpoint allows it, the bare application does not."""

    async def look(page: Page) -> tuple[Any, Any]:
        await page.open(site.urls["served"])
        ask = "fetch('{}', {{headers: {{'x-mine': '1'}}}}).then(r => r.json()).catch(e => e.name)"
        allowed = await page.run(ask.format(site.urls["hello"] + "/?name=you"))
        return allowed, await page.run(ask.format(site.urls["bare"] + "/x"))

    assert see(look) == ({"hello": "you"}, "TypeError")


def test_long_request_of_a_script_of_another_origin(site: Site) -> None:
    """It is continued like any other, with all that browsers ask before."""

    async def look(page: Page) -> Any:
        await page.open(site.urls["served"])
        ask = "fetch('{}', {{headers: {{'x-mine': '1'}}}}).then(r => r.json()).catch(e => e.name)"
        return await page.run(ask.format(site.urls["hello"] + "/?name=you&wait=6"))

    assert see(look) == {"hello": "you"}


def test_server_sent_events(site: Site) -> None:
    async def look(page: Page) -> list[str]:
        await page.open(site.urls["bare"] + "/x")
        return await page.run(
            """new Promise((resolve, reject) => {
                const seen = [], source = new EventSource('/stream?n=3&pause=0.2');
                source.onmessage = event => {
                    seen.push(event.data.split(' ')[0]);
                    if (seen.length == 3) { source.close(); resolve(seen); }
                };
                source.onerror = () => reject('no events');
            })"""
        )

    assert see(look) == ["0", "1", "2"]


_TALK = """new Promise((resolve, reject) => {
    const socket = new WebSocket(location.href.replace('http', 'ws').replace('/x', '/ws'), ['chat']);
    socket.onopen = () => socket.send('hello');
    socket.onmessage = event => { resolve([socket.protocol, event.data]); socket.close(); };
    socket.onerror = () => reject('no WebSocket');
})"""


def test_websocket(site: Site) -> None:
    async def look(page: Page) -> list[str]:
        await page.open(site.urls["bare"] + "/x")
        return await page.run(_TALK)

    assert see(look) == ["chat", "you said hello"]


def test_long_request_is_continued(site: Site) -> None:
    async def look(page: Page) -> list[str]:
        await page.open(site.urls["bare"] + "/slow?s=6")
        return [await page.run("document.body.innerText"), await page.run("location.search")]

    text, search = see(look)
    assert text == "at last"
    assert "__modal_function_call_id=fc-" in search


def test_leaving_a_page_ends_its_request(site: Site) -> None:
    async def look(page: Page) -> None:
        await page.open(site.urls["bare"] + "/x")
        await page.run("void fetch('/wait?key=browser')")
        await asyncio.to_thread(site.eventually, "browser", lambda value: value == "began")
        await page.open("about:blank")

    see(look)
    wanted = "told and cancelled"
    assert site.eventually("browser", lambda value: value == wanted) == wanted


def test_page_that_is_not_there(site: Site) -> None:
    async def look(page: Page) -> str:
        url = urlsplit(site.urls["bare"])
        await page.open(f"http://homeport--nothing-here.localhost:{url.port}/")
        return await page.run("document.body.innerText")

    assert "There is no web function at homeport--nothing-here.localhost" in see(look)


def test_tls_is_http2_and_has_websockets(site: Site) -> None:
    url = urlsplit(site.urls["bare"])
    assert url.hostname
    assert url.port
    trusted = "--ignore-certificate-errors-spki-list=" + _key_hash(url.hostname, url.port, site)

    async def look(page: Page) -> tuple[Any, ...]:
        await page.open(f"https://{url.hostname}:{url.port}/x")
        hop = await page.run("performance.getEntriesByType('navigation')[0].nextHopProtocol")
        return hop, await page.run("isSecureContext"), await page.run(_TALK)

    assert see(look, trusted) == ("h2", True, ["chat", "you said hello"])


def _key_hash(host: str, port: int, site: Site) -> str:
    """What Chromium calls the key of that name's certificate, once it is found to be in order."""
    context = ssl.create_default_context(cafile=str(site.certificates))

    async def fetch() -> bytes:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=host
        )
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return found

    key = x509.load_der_x509_certificate(asyncio.run(fetch())).public_key()
    public = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.b64encode(hashlib.sha256(public).digest()).decode()
