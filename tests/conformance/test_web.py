"""Web functions, asked by real HTTP clients."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator

import aiohttp
import httpx
import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.sites import Site, proxy_token, running

MB = 1_000_000


@pytest.fixture(scope="module")
def site(runner: Runner, client: Client) -> Iterator[Site]:
    with running(runner, client, "web.py") as site:
        yield site


@pytest.fixture
def key() -> str:
    """A name of this test's own."""
    return uuid.uuid4().hex


# ── names ─────────────────────────────────────────────────────────────────────────────────────


def test_urls_say_workspace_app_and_function(site: Site) -> None:
    pattern = r"http://homeport--conformance-web-{}-dev\.localhost:\d+"
    assert re.fullmatch(pattern.format("hello"), site.urls["hello"])
    assert re.fullmatch(pattern.format("greeter-greet"), site.urls["greet"])
    assert site.urls["hello"].rpartition(":")[0] in site.program.output().partition("URLS ")[0]


def test_label(site: Site) -> None:
    assert re.fullmatch(r"http://homeport--of-my-own-choice-dev\.localhost:\d+", site.urls["one"])


def test_unknown_host(site: Site) -> None:
    answer = site.ask("hello", headers={"host": "homeport--nothing-here.localhost"})
    assert answer.status_code == 404
    assert "no web function at homeport--nothing-here.localhost" in answer.text


def test_web_function_has_no_remote(site: Site) -> None:
    report = site.program.lines()
    ended = {line["check"]: line for line in report if "seconds" in line}
    assert site.urls["hello"] in ended["remote"]["error"]["message"]
    assert ended["plain_method"]["value"] == "plain"


# ── requests and answers ──────────────────────────────────────────────────────────────────────


def test_application_sees_the_request(site: Site) -> None:
    answer = site.ask("bare", "/a/b%20c?x=1", method="PUT", content=b"12345")
    assert answer.status_code == 201
    assert answer.text == "PUT /a/b c x=1 5"
    assert answer.headers.get_list("x-one") == ["1", "2"]


def test_head(site: Site) -> None:
    answer = site.ask("bare", "/x", method="HEAD")
    assert (answer.status_code, answer.content) == (201, b"")


def test_options(site: Site) -> None:
    assert site.ask("bare", "/x", method="OPTIONS").text == "OPTIONS /x  0"


def test_fastapi_endpoint(site: Site) -> None:
    answer = site.ask("hello", "/?name=you")
    assert (answer.status_code, answer.json()) == (200, {"hello": "you"})


def test_cors_is_the_applications(site: Site) -> None:
    headers = {"origin": "http://elsewhere", "access-control-request-method": "GET"}
    answer = site.ask("hello", method="OPTIONS", headers=headers)
    assert answer.headers["access-control-allow-origin"] in ("*", "http://elsewhere")


def test_other_method_is_the_applications_business(site: Site) -> None:
    assert site.ask("hello", method="POST").status_code == 405
    assert site.ask("hello", "/nowhere").status_code == 404


def test_method_of_a_class(site: Site) -> None:
    assert site.ask("greet", "/?name=you").json() == "Good day, you"
    assert site.ask("greet", "/docs").status_code == 200


def test_wsgi(site: Site) -> None:
    answer = site.ask("wsgi", "/path", method="POST", content=b"abc")
    assert (answer.status_code, answer.text) == (202, "POST /path ABC")


def test_web_server(site: Site) -> None:
    assert site.ask("served").text == "<p>from a web server"
    assert site.ask("served", "/nothing").status_code == 404


def test_one_at_a_time_without_concurrency(site: Site) -> None:
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(site.ask("one").text)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["1"] * 4


def test_many_at_once(site: Site) -> None:
    async def all_of_them() -> list[int]:
        url, host = site.address("bare", "/slow?s=1")
        async with httpx.AsyncClient(timeout=60, follow_redirects=True) as client:
            asked = [client.get(url, headers=host) for _ in range(40)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(all_of_them()) == [200] * 40


def test_http2(site: Site) -> None:
    answer = site.ask("bare", "/h2", method="POST", content=b"x" * 300_000, http2=True)
    assert (answer.http_version, answer.status_code) == ("HTTP/2", 201)
    assert answer.text == "POST /h2  300000"


# ── streams ───────────────────────────────────────────────────────────────────────────────────


def test_events_come_as_they_are_sent(site: Site) -> None:
    url, host = site.address("bare", "/stream?n=3&pause=0.5")
    late: list[float] = []
    with httpx.stream("GET", url, headers=host, timeout=60) as answer:
        for line in answer.iter_lines():
            if line:
                late.append(time.time() - float(line.split()[2]))
    assert len(late) == 3
    assert max(late) < 0.5  # before the next one was sent


@pytest.mark.parametrize("rest", [0, 3])
def test_large_upload(site: Site, rest: int) -> None:
    size = 60 * MB
    block = bytes(range(256)) * 4000
    whole = (block * (size // len(block) + 1))[:size]
    answer = site.ask("bare", f"/digest?rest={rest}", method="POST", content=whole)
    assert answer.text == f"{size} {hashlib.sha256(whole).hexdigest()}"


def test_slow_upload(site: Site) -> None:
    """A body that comes later than the container waits for its first message."""

    async def body() -> AsyncIterator[bytes]:
        await asyncio.sleep(6)
        yield b"at "
        await asyncio.sleep(1)
        yield b"last"

    async def upload() -> str:
        url, host = site.address("bare", "/late")
        async with httpx.AsyncClient(timeout=60, follow_redirects=True) as client:
            return (await client.post(url, headers=host, content=body())).text

    assert asyncio.run(upload()) == "POST /late  7"


def test_container_waits_for_its_reader(site: Site, key: str) -> None:
    url, host = site.address("bare", f"/endless?key={key}")
    with httpx.stream("GET", url, headers=host, timeout=60) as answer:
        taken = answer.iter_raw(MB)
        for _ in range(5):
            next(taken)
        # What the container's own client keeps is 1024 blocks; then nothing goes on.
        before, sent = -1, site.seen(key)
        while sent != before:
            time.sleep(3)
            before, sent = sent, site.seen(key)
            assert sent < 60 * MB
    assert site.eventually(f"{key}-ended", bool) is not None


def test_long_answer(site: Site, key: str) -> None:
    answer = site.ask("bare", f"/endless?n=80&block={MB}&key={key}")
    assert len(answer.content) == 80 * MB


# ── ends ──────────────────────────────────────────────────────────────────────────────────────


def test_client_that_leaves_ends_the_request(site: Site, key: str) -> None:
    url, host = site.address("bare", f"/wait?key={key}")
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(url, headers=host, timeout=2)
    assert site.eventually(key, lambda value: value == "told and cancelled") == "told and cancelled"
    assert site.ask("bare", "/still-there").status_code == 201


def test_what_follows_an_answer_runs_to_its_end(site: Site, key: str) -> None:
    assert site.ask("bare", f"/afterwards?key={key}").text == "done"
    assert site.eventually(key, bool) == "went on"


def test_failure_says_which_call_and_where_its_log_is(site: Site) -> None:
    answer = site.ask("bare", "/crash")
    assert answer.status_code == 500
    assert "'bare' of the app 'conformance-web'" in answer.text
    assert re.search(r"call fc-\w+", answer.text)
    assert "this went wrong" in answer.text
    assert re.search(r"homeport app logs ap-\w+", answer.text)
    page = site.ask("bare", "/crash", headers={"accept": "text/html"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"


def test_failure_in_the_middle_breaks_the_answer(site: Site) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        site.ask("bare", "/half")


def test_application_that_does_not_start(site: Site) -> None:
    answer = site.ask("never_starts")
    assert answer.status_code == 500
    assert "no application here" in answer.text


def test_request_runs_again_if_its_container_ends(site: Site, key: str) -> None:
    answer = site.ask("bare", f"/exit?key={key}&times=1", method="POST", content=b"body")
    assert answer.text == "1 body"


def test_no_second_run_once_an_answer_began(site: Site, key: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        site.ask("bare", f"/exit?key={key}&times=1&half=1")
    assert site.seen(key) == 1


def test_long_request_is_continued(site: Site) -> None:
    first = site.ask("bare", "/slow?s=6", method="POST", content=b"x", follow=False)
    assert first.status_code == 303
    assert re.fullmatch(r"/slow\?s=6&__modal_function_call_id=fc-\w+", first.headers["location"])
    answer = site.ask("bare", first.headers["location"])
    assert answer.text == "at last"
    again = site.ask("bare", first.headers["location"])
    assert again.status_code == 404


# ── WebSockets ────────────────────────────────────────────────────────────────────────────────


def test_websocket(site: Site) -> None:
    async def talk() -> list[object]:
        url, host = site.address("bare", "/ws")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, headers=host, protocols=("chat",)) as socket,
        ):
            await socket.send_str("hello")
            said: list[object] = [socket.protocol, await socket.receive_str()]
            await socket.send_bytes(b"abc" * 100_000)
            said.append(await socket.receive_bytes() == b"cba" * 100_000)
            await socket.send_str("count")
            said.append([await socket.receive_str() for _ in range(10)])
            await socket.send_str("bye")
            await socket.receive()
            return [*said, socket.close_code]

    assert asyncio.run(talk()) == [
        "chat",
        "you said hello",
        True,
        [str(number) for number in range(10)],
        3001,
    ]


def test_websocket_that_the_client_closes(site: Site, key: str) -> None:
    async def leave() -> None:
        url, host = site.address("bare", f"/ws?key={key}")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, headers=host) as socket,
        ):
            await socket.close(code=4321)

    asyncio.run(leave())
    assert site.eventually(key, bool) == 4321


def test_websocket_that_is_refused(site: Site) -> None:
    async def knock() -> int:
        url, host = site.address("bare", "/ws/refused")
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(url, headers=host)
            return refused.value.status

    assert asyncio.run(knock()) == 403


# ── proxy tokens ──────────────────────────────────────────────────────────────────────────────


def test_proxy_token(site: Site, runner: Runner, client: Client) -> None:
    numbers = {"a": 1, "b": 2}
    refused = site.ask("private", method="POST", json=numbers)
    assert refused.status_code == 401
    assert "Modal-Key" in refused.text
    token, secret = proxy_token(runner)
    good = {"modal-key": token, "modal-secret": secret}
    assert site.ask("private", method="POST", json=numbers, headers=good).json() == {"sum": 3}
    bearer = {"authorization": f"Bearer {token}.{secret}"}
    assert site.ask("private", method="POST", json=numbers, headers=bearer).status_code == 200
    bad = {**good, "modal-secret": "ws-wrong"}
    assert site.ask("private", method="POST", json=numbers, headers=bad).status_code == 401
    assert site.ask("private", headers=good).status_code == 405
