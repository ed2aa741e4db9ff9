"""Web functions, asked by real HTTP clients."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import re
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import httpx
import ngh2
import pytest
import wsproto
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Completed, Runner
from tests.conformance.harness.sites import Site, proxy_token, running
from tests.unit.transport.raw_client import Answer, RawClient
from wsproto import events

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


@pytest.mark.parametrize("http2", [False, True])
def test_headers_pass(site: Site, http2: bool) -> None:
    sent = {"range": "bytes=2-5", "accept-encoding": "br;q=0.5, gzip", "cookie": "a=1; b=2"}
    seen = site.ask("bare", "/headers", headers=sent, http2=http2).json()
    assert {name: value for name, value in seen if name in sent} == sent


@pytest.mark.parametrize("http2", [False, True])
def test_encoded_answer_is_left_alone(site: Site, http2: bool) -> None:
    body = gzip.compress(b"a page " * 1000)
    said = {
        "status": 206,
        "headers": [["content-encoding", "gzip"], ["content-range", "bytes 0-9/100"]],
        "body": body.hex(),
    }
    url, host = site.address("bare", "/reply")
    with (
        httpx.Client(timeout=60, http1=not http2, http2=http2) as client,
        client.stream("POST", url, headers=host, json=said) as answer,
    ):
        assert answer.status_code == 206
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["content-range"] == "bytes 0-9/100"
        assert b"".join(answer.iter_raw()) == body


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize(
    ("status", "name", "value", "words"),
    [
        (200, "x-name", "a\r\nset-cookie: stolen=1", "line breaks"),
        (200, "x name\r\nset-cookie", "stolen=1", "no name"),
        (42, "x-name", "a", "status 42"),
        (200, "content-length", "many", "Content-Length"),
    ],
)
def test_answer_that_is_none(
    site: Site, http2: bool, status: int, name: str, value: str, words: str
) -> None:
    said = {"status": status, "headers": [[name, value]], "body": ""}
    answer = site.ask("bare", "/reply", method="POST", json=said, http2=http2)
    assert answer.status_code == 502
    assert words in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("name", "head", "options", "other"),
    [
        ("bare", 201, 201, 404),
        ("wsgi", 202, 202, 202),
        ("served", 200, 501, 501),
        ("hello", 405, 405, 405),
        ("greet", 405, 405, 405),
    ],
)
def test_methods_are_the_applications(
    site: Site, name: str, head: int, options: int, other: int
) -> None:
    answer = site.ask(name, "/", method="HEAD")
    assert (answer.status_code, answer.content) == (head, b"")
    assert site.ask(name, "/", method="OPTIONS").status_code == options
    if name != "bare":
        assert site.ask(name, "/", method="PATCH", content=b"x").status_code == other


def test_docs_are_shown_where_they_are_asked_for(site: Site) -> None:
    assert "swagger" in site.ask("greet", "/docs").text.lower()
    assert "/" in site.ask("greet", "/openapi.json").json()["paths"]
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert site.ask("hello", path).status_code == 404


def test_cookies_of_browsers(site: Site) -> None:
    """In HTTP/2 each is a field of its own."""

    async def ask() -> Answer:
        async with _http2(site, "bare") as (client, head):
            cookies = [(b"cookie", b"a=1"), (b"cookie", b"b=2")]
            answer = _send(client, head(b"/headers", cookies))
            await answer.closed.wait()
            return answer

    seen = httpx.Response(200, content=asyncio.run(ask()).data).json()
    assert [value for name, value in seen if name == "cookie"] == ["a=1; b=2"]


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [("/" + "a" * 70_000, "x", 414), ("/", "y" * 70_000, 431), ("/" + "a" * 20_000, "x", 201)],
)
def test_long_heads(site: Site, path: str, header: str, status: int) -> None:
    data = _request(site, "bare", path, f"X-Header: {header}", "Connection: close")
    assert int(_ask_raw(site, "bare", data).split()[1]) == status


def test_client_that_waits_to_be_told_to_go_on(site: Site) -> None:
    with _connected(site, "bare") as client:
        client.sendall(
            _request(site, "bare", "/b", "Expect: 100-continue", "Content-Length: 5", method="POST")
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.sendall(b"12345")
        assert client.recv(1000).startswith(b"HTTP/1.1 201 ")


def test_trailers_of_a_request_are_no_headers(site: Site) -> None:
    data = _request(
        site,
        "bare",
        "/digest?rest=0.2",
        "Transfer-Encoding: chunked",
        "Trailer: X-Sum",
        "Connection: close",
        method="POST",
    )
    answer = _ask_raw(site, "bare", data + b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nHost: other\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert hashlib.sha256(b"abc").hexdigest().encode() in answer


def test_ambiguous_requests_are_refused(site: Site) -> None:
    """What two parsers could read in two ways is how requests are smuggled."""
    for headers in (
        ("Content-Length: 3", "Transfer-Encoding: chunked"),
        ("Content-Length: 3", "Content-Length: 4"),
        ("Transfer-Encoding: chunked, identity",),
        ("Content-Length: +3",),
        ("X : y",),
        ("Host: other",),
        (" folded: y",),
    ):
        for name in ("bare", "served"):
            data = _request(site, name, "/x", *headers, "Connection: close", method="POST")
            answer = _ask_raw(site, name, data + b"0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 400 "), (name, headers, answer)


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


def test_many_streams_and_resets(site: Site) -> None:
    """Those that are reset are cancelled; the others on the connection do not notice."""

    async def talk() -> list[str]:
        async with _http2(site, "bare") as (client, head):
            kept: list[Answer] = []
            for number in range(60):
                answer = _send(client, head(b"/slow?s=1"))
                if number % 3:
                    client.http2.reset_stream(max(client.answers), ngh2.ErrorCode.CANCEL)
                    client.flush()
                else:
                    kept.append(answer)
            for answer in kept:
                await answer.closed.wait()
            return [answer.headers[":status"] for answer in kept]

    assert set(asyncio.run(talk())) <= {"200", "303"}
    assert site.ask("bare", "/still-there").status_code == 201


# ── ends ──────────────────────────────────────────────────────────────────────────────────────


def test_client_that_leaves_ends_the_request(site: Site, key: str) -> None:
    url, host = site.address("bare", f"/wait?key={key}")
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(url, headers=host, timeout=2)
    assert site.eventually(key, lambda value: value == "told and cancelled") == "told and cancelled"
    assert site.ask("bare", "/still-there").status_code == 201


def test_client_that_leaves_in_the_middle_of_an_upload(site: Site, key: str) -> None:
    before = site.ask("bare").headers["x-container"]
    with _connected(site, "bare") as client:
        path = f"/wait?key={key}"
        chunked = "Transfer-Encoding: chunked"
        client.sendall(_request(site, "bare", path, chunked, method="POST") + b"3\r\nabc\r\n")
        assert site.eventually(key, bool) == "began"
    assert site.eventually(key, lambda value: value != "began") in ("told", "told and cancelled")
    assert site.ask("bare").headers["x-container"] == before


def test_client_that_leaves_in_the_middle_of_events(site: Site, key: str) -> None:
    before = site.ask("bare").headers["x-container"]
    url, host = site.address("bare", f"/stream?n=1000&key={key}")
    with httpx.stream("GET", url, headers=host, timeout=60) as answer:
        assert next(answer.iter_lines()).startswith("data: 0")
    assert site.eventually(key, bool) == "CancelledError"
    assert site.ask("bare").headers["x-container"] == before


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


@pytest.mark.parametrize("http2", [False, True])
def test_failure_in_the_middle_breaks_the_answer(site: Site, http2: bool) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        site.ask("bare", "/half", http2=http2)


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


def test_scripts_of_other_sites_are_continued(site: Site) -> None:
    """The browser asks with OPTIONS first, and again for the address that it is sent to."""
    origin = {"origin": "http://elsewhere.example"}
    asked = site.ask("bare", "/slow?s=5", method="OPTIONS", headers=origin, follow=False)
    assert (asked.status_code, asked.text) == (200, "at last")
    first = site.ask("bare", "/slow?s=5", headers=origin, follow=False)
    assert first.status_code == 303
    assert first.headers["access-control-allow-origin"] == origin["origin"]
    there = first.headers["location"]
    other = there.replace("/slow", "/x")  # which answers at once
    assert site.ask("bare", other, method="OPTIONS", headers=origin).status_code == 201
    assert site.ask("bare", there, headers=origin).text == "at last"


def test_continuation_stays_at_its_host(site: Site) -> None:
    """``//name`` in a ``Location`` would be another host."""
    data = _request(site, "bare", "//elsewhere.example/slow?s=6", "Connection: close")
    answer = _ask_raw(site, "bare", data)
    assert answer.startswith(b"HTTP/1.1 303 ")
    location = re.search(rb"(?i)location: (\S+)", answer)
    assert location is not None
    here = httpx.URL(site.urls["bare"])
    there = here.join(location[1].decode())
    assert there.host == here.host
    assert there.path == "//elsewhere.example/slow"


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


def test_websocket_messages_in_fragments(site: Site) -> None:
    heard = _wsproto(
        site,
        events.TextMessage("hel", message_finished=False),
        events.Ping(b"there?"),
        events.TextMessage("lo ", message_finished=False),
        events.TextMessage("\N{LATIN SMALL LETTER E WITH ACUTE}"),
        events.BytesMessage(b"ab", message_finished=False),
        events.BytesMessage(b"c"),
        events.TextMessage("bye"),
    )
    pongs = [each.payload for each in heard if isinstance(each, events.Pong)]
    assert pongs == [b"there?"]
    rest = [each for each in heard if not isinstance(each, events.Pong)]
    assert [each.data for each in rest if isinstance(each, events.Message)] == [
        "you said hello \N{LATIN SMALL LETTER E WITH ACUTE}",
        b"cba",
    ]
    assert isinstance(rest[-1], events.CloseConnection)
    assert (rest[-1].code, rest[-1].reason) == (3001, "as asked")


def test_websocket_message_that_is_too_long(site: Site, key: str) -> None:
    heard = _wsproto(site, events.BytesMessage(b"x" * 17 * MB), path=f"/ws?key={key}")
    assert isinstance(heard[-1], events.CloseConnection)
    assert heard[-1].code == 1009
    assert site.eventually(key, bool) == 1009


def test_websocket_whose_client_is_gone(site: Site, key: str) -> None:
    _wsproto(site, path=f"/ws?key={key}", leave=True)
    assert site.eventually(key, bool) in (1005, 1006)


def test_websocket_that_is_refused(site: Site) -> None:
    async def knock() -> int:
        url, host = site.address("bare", "/ws/refused")
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(url, headers=host)
            return refused.value.status

    assert asyncio.run(knock()) == 403


def _wsproto(
    site: Site, *messages: events.Event, path: str = "/ws", leave: bool = False
) -> list[events.Event]:
    """What a WebSocket answers to ``messages`` until it ends, or the client hangs up."""
    heard: list[events.Event] = []
    with _connected(site, "bare") as client:
        talk = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        client.sendall(talk.send(events.Request(host=site.address("bare")[1]["host"], target=path)))
        while not heard or not (leave or isinstance(heard[-1], events.CloseConnection)):
            talk.receive_data(client.recv(65536) or None)
            for event in talk.events():
                if isinstance(event, events.AcceptConnection):
                    for message in messages:
                        with contextlib.suppress(ConnectionError):
                            client.sendall(talk.send(message))
                heard.append(event)
    return heard[1:] if not leave else heard


# ── connections by hand ───────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _connected(site: Site, name: str) -> Iterator[socket.socket]:
    port = httpx.URL(site.urls[name]).port
    with socket.create_connection(("127.0.0.1", port), 60) as client:
        yield client


def _request(site: Site, name: str, path: str, *headers: str, method: str = "GET") -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {site.address(name)[1]['host']}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def _ask_raw(site: Site, name: str, data: bytes) -> bytes:
    """All that is answered until the connection is closed."""
    answer = b""
    with _connected(site, name) as client:
        client.sendall(data)
        while part := client.recv(65536):
            answer += part
    return answer


Fields = list[tuple[bytes, bytes]]


@contextlib.asynccontextmanager
async def _http2(site: Site, name: str) -> AsyncIterator[tuple[RawClient, Callable[..., Fields]]]:
    """A connection, and who makes the head of a request on it."""
    url = httpx.URL(site.urls[name])
    assert url.port is not None

    def head(path: bytes, more: Fields | None = None) -> Fields:
        plain = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", url.netloc)]
        return [*plain, (b":path", path), *(more or [])]

    async with asyncio.timeout(120):
        client = await RawClient.connect(url.port)
        try:
            yield client, head
        finally:
            client.transport.close()


def _send(client: RawClient, headers: Fields) -> Answer:
    stream_id = client.http2.send_request(headers, end_stream=True)
    answer = client.answers[stream_id] = Answer()
    client.flush()
    return answer


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


@pytest.mark.since("1.5.4")
def test_modal_curl(site: Site, runner: Runner, client: Client, tmp_path: Path) -> None:
    """It gets itself a token for names under the vendor's own domain, which may be custom ones here."""
    port = httpx.URL(site.urls["private"]).port
    name = "conformance-web.modal.direct"
    ours = {"XDG_CACHE_HOME": str(tmp_path)}

    def curl(host: str) -> Completed:
        return runner.cli(
            client,
            *("curl", "-sS", "--fail-with-body", "--resolve", f"*:{port}:127.0.0.1"),
            *("-H", "content-type: application/json", "-d", '{"a": 1, "b": 2}'),
            f"http://{host}:{port}/",
            environ=ours,
        )

    for _ in range(2):  # then with the token that it keeps
        assert curl(name).succeeded().stdout == '{"sum":3}'
    bare = httpx.URL(site.urls["private"]).host
    refused = curl(bare)  # any other name gets what plain curl gets
    assert refused.returncode != 0
    assert "Modal-Key" in refused.output
    unknown = curl("nothing-here.modal.direct")
    assert unknown.returncode != 0
    assert "no web function at nothing-here.modal.direct" in unknown.output


def test_custom_domain(site: Site) -> None:
    numbers = {"a": 1, "b": 2}
    port = httpx.URL(site.urls["private"]).port
    host = {"host": f"conformance-web.modal.direct:{port}"}
    assert site.ask("private", method="POST", json=numbers, headers=host).status_code == 401
    assert f"http://conformance-web.modal.direct:{port}" in site.program.output()


@pytest.mark.since("1.6.0")
def test_proxy_tokens_are_the_workspaces(site: Site, runner: Runner, client: Client) -> None:
    """Made, given to environments and deleted by the CLI, used with plain HTTP."""

    def tokens(*arguments: str) -> str:
        return runner.cli(client, "workspace", "proxy-tokens", *arguments).succeeded().stdout

    def ask() -> int:
        asked = {"method": "POST", "json": {"a": 1, "b": 2}}
        return site.ask("private", headers={"authorization": bearer}, **asked).status_code

    made = re.search(r"Bearer (wk-\w+)\.[\w-]+", tokens("create", "--name", "by hand", "--json"))
    assert made is not None
    bearer, token = made[0], made[1]
    assert ask() == 200
    tokens("allow", token, "main")
    assert token in tokens("list", "--environment", "main", "--json")
    assert ask() == 200
    tokens("revoke", token, "main")
    assert token not in tokens("list", "--environment", "main", "--json")
    tokens("delete", token, "--yes")
    assert ask() == 401
