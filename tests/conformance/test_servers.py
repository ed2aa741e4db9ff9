"""Servers and web servers: requests that go straight to a port of a container."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest
from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.const import Cardinality
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.sites import Site, proxy_token, running

MB = 1_000_000
FIRST = (1, 5, 0)
"""Servers came in 1.4, as functions that listen."""


@pytest.fixture(scope="module")
def site(runner: Runner, client: Client) -> Iterator[Site]:
    if client.release < FIRST:
        pytest.skip("the client has no servers that this platform runs")
    with running(runner, client, "servers.py") as site:
        yield site


def test_url_says_app_and_class(site: Site) -> None:
    assert re.fullmatch(
        r"http://homeport--conformance-servers-open-dev\.localhost:\d+", site.urls["open"]
    )


def test_request_waits_for_the_first_container(site: Site) -> None:
    """The server listens only a second after its container says that it is up."""
    answer = site.ask("open", "/a/b%20c?d=e", headers={"x-one": "1"})
    assert answer.status_code == 201
    seen = answer.json()
    assert (seen["method"], seen["path"]) == ("GET", "/a/b%20c?d=e")
    assert seen["headers"]["x-one"] == "1"
    assert seen["headers"]["x-forwarded-for"] == "127.0.0.1"


def test_head_and_options(site: Site) -> None:
    assert site.ask("open", "/x", method="HEAD").content == b""
    assert site.ask("open", "/x", method="OPTIONS").json()["method"] == "OPTIONS"


def test_body(site: Site) -> None:
    body = bytes(range(256)) * 100_000
    seen = site.ask("open", method="POST", content=body).json()
    assert (seen["size"], seen["sha"]) == (len(body), hashlib.sha256(body).hexdigest())


def test_chunked_body(site: Site) -> None:
    body = [bytes([number]) * 50_000 for number in range(50)]
    seen = site.ask("open", method="POST", content=iter(body)).json()
    whole = b"".join(body)
    assert (seen["size"], seen["sha"]) == (len(whole), hashlib.sha256(whole).hexdigest())


def test_large_answer(site: Site) -> None:
    assert len(site.ask("open", f"/big?{50 * MB}").content) == 50 * MB


def test_events_come_as_they_are_sent(site: Site) -> None:
    url, host = site.address("open", "/stream?3")
    late: list[float] = []
    with httpx.stream("GET", url, headers=host, timeout=60) as answer:
        for line in answer.iter_lines():
            if line:
                late.append(time.time() - float(line.split()[2]))
    assert len(late) == 3
    assert max(late) < 0.5  # before the next one was sent


def test_connection_serves_many_requests(site: Site) -> None:
    url, host = site.address("open")
    with httpx.Client(timeout=60) as client:
        answers = [client.get(url, headers=host).json()["requests"] for _ in range(5)]
    assert answers[-1] - answers[0] == 4  # the connection to the container is kept as well


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    url, host = site.address("open")

    async def pipeline() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        for path in ("one", "slow?0.5", "three"):
            writer.write(f"GET /{path} HTTP/1.1\r\nHost: {host['host']}\r\n\r\n".encode())
        writer.write(
            f"GET /last HTTP/1.1\r\nHost: {host['host']}\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        return answer

    paths = re.findall(rb'"path": "([^"]*)"', asyncio.run(pipeline()))
    assert paths == [b"/one", b"/slow?0.5", b"/three", b"/last"]


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("name", ["open", "web_server"])
def test_what_is_the_servers_is_left_alone(site: Site, name: str, http2: bool) -> None:
    url, host = site.address(name, "/gzip")
    sent = {**host, "range": "bytes=2-5", "accept-encoding": "br;q=0.5, gzip", "cookie": "a=1; b=2"}
    with httpx.Client(timeout=60, http1=not http2, http2=http2) as client:
        with client.stream("GET", url, headers=sent) as answer:
            assert answer.status_code == 206
            assert answer.headers["content-range"] == "bytes 0-9/100"
            assert gzip.decompress(b"".join(answer.iter_raw())) == b"a page " * 1000
        seen = client.get(url.replace("gzip", "x"), headers=sent).json()["headers"]
        assert {name: seen[name] for name in sent if name != "host"} | host == sent
        long = client.get(url.replace("gzip", "long"), headers=host)
        assert (long.status_code, len(long.headers["x-long"])) == (200, 30_000)


@pytest.mark.parametrize("name", ["open", "private"])
def test_answer_before_the_end_of_an_upload(site: Site, name: str) -> None:
    """Of the container, which takes no more; of the gateway, which wants a token."""
    url, host = site.address(name)
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), 60) as client:
        lines = ["POST /early HTTP/1.1", f"Host: {host['host']}", f"Content-Length: {40 * MB}"]
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        for _ in range(40):
            client.sendall(b"x" * MB)
        answer = client.recv(65536)
    assert int(answer.split()[1]) == {"open": 413, "private": 401}[name]


@pytest.mark.parametrize("http2", [False, True])
def test_answer_that_breaks_off(site: Site, http2: bool) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        site.ask("open", "/half", http2=http2)
    assert site.ask("open").status_code == 201


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("name", ["open", "web_server"])
def test_client_that_leaves_in_the_middle_of_events(site: Site, name: str, http2: bool) -> None:
    before = site.ask(name).json()
    url, host = site.address(name, "/stream?1000")
    with (
        httpx.Client(timeout=60, http1=not http2, http2=http2) as client,
        client.stream("GET", url, headers=host) as answer,
    ):
        assert next(answer.iter_lines()).startswith("data: 0")
    deadline = time.monotonic() + 60
    while (now := site.ask(name).json())["gone"] == before["gone"]:
        assert time.monotonic() < deadline, "its server writes on"
    assert now["container"] == before["container"]


@pytest.mark.parametrize("name", ["open", "web_server"])
def test_client_that_waits_to_be_told_to_go_on(site: Site, name: str) -> None:
    url, host = site.address(name)
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), 60) as client:
        lines = ["POST / HTTP/1.1", f"Host: {host['host']}", "Expect: 100-continue"]
        client.sendall("\r\n".join([*lines, "Content-Length: 5", "", ""]).encode())
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"12345")
        assert client.recv(1000).startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize("name", ["open", "web_server"])
def test_websocket_that_is_closed(site: Site, name: str) -> None:
    async def talk() -> int | None:
        url, host = site.address(name, "/ws")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, headers=host) as socket,
        ):
            await socket.close(code=4321, message=b"as asked")
            return socket.close_code

    assert asyncio.run(talk()) == 4321


def test_websocket(site: Site) -> None:
    async def talk() -> str:
        url, host = site.address("open", "/ws")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, headers=host) as socket,
        ):
            await socket.send_str("abc" * 30)
            return await socket.receive_str()

    assert asyncio.run(talk()) == "cba" * 30


def test_proxy_token_is_needed_unless_said_otherwise(site: Site, runner: Runner) -> None:
    assert site.ask("private").status_code == 401
    token, secret = proxy_token(runner)
    good = {"modal-key": token, "modal-secret": secret}
    seen = site.ask("private", headers=good)
    assert seen.status_code == 201
    assert not {"modal-key", "modal-secret"} & set(seen.json()["headers"])
    assert site.ask("private", headers={**good, "modal-key": "wk-wrong"}).status_code == 401


@pytest.mark.since("1.6.1")
def test_short_lived_tokens(site: Site) -> None:
    """What the client gets for itself to call a server that is not for everybody."""
    token = site.program.lines()[-1]["value"]
    assert site.ask("private", headers={"modal-authorization": f"Bearer {token}"}).is_success
    other = {"modal-authorization": f"Bearer {token[:-2]}xx"}
    assert site.ask("private", headers=other).status_code == 401


@pytest.mark.since("1.6.1")
def test_sessions_stay_in_one_container(site: Site) -> None:
    assert site.ask("sticky").status_code == 401
    first, second = _session(site), _session(site)
    containers = [site.ask("sticky", headers=h).json()["container"] for h in (first, second) * 3]
    assert containers == containers[:2] * 3
    assert containers[0] != containers[1]
    token = first["modal-authorization"].partition(" ")[2]
    ending = {"x-modal-server-session-token": token}
    path = "/_modal/sessions/terminate"
    assert site.ask("sticky", path, method="POST", headers=ending).status_code == 200
    assert site.ask("sticky", headers=first).status_code == 401
    assert site.ask("sticky", headers=second).status_code == 201
    assert site.ask("sticky", path, method="POST", headers=ending).status_code == 404


def _session(site: Site) -> dict[str, str]:
    """The headers of a new session."""
    idle = {"x-modal-server-session-idle-timeout": "60"}
    made = site.ask("sticky", "/_modal/sessions/start", method="POST", headers=idle)
    assert made.status_code == 200, made.text
    return {"modal-authorization": f"Bearer {made.json()['token']}"}


class _Bytes:
    """Messages of gRPC that are bytes."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, _type: object) -> bytes:
        return message

    def decode(self, data: bytes, _type: object) -> bytes:
        return data


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_server_that_speaks_grpc(site: Site, secure: bool) -> None:
    async def talk() -> None:
        url = httpx.URL(site.urls["grpc"])
        context = None
        if secure:
            context = ssl.create_default_context(cafile=str(site.certificates))
            context.set_alpn_protocols(["h2"])
        config = Configuration(ssl_target_name_override=url.host)
        channel = Channel("127.0.0.1", url.port, ssl=context, codec=_Bytes(), config=config)
        channel._authority = url.netloc.decode()
        both = Cardinality.STREAM_STREAM
        async with channel, channel.request("/t.Echo/Each", both, bytes, bytes) as stream:
            for message in (b"abc", b"12" * MB):
                await stream.send_message(message)
                assert await stream.recv_message() == message[::-1]
            await stream.end()
            await stream.recv_trailing_metadata()
            assert stream.trailing_metadata["container"].startswith("ta-")

    asyncio.run(talk())


def test_tls(site: Site) -> None:
    """The same port takes TLS; the installation's own authority vouches for the name."""
    url = httpx.URL(site.urls["open"])
    context = ssl.create_default_context(cafile=str(site.certificates))
    secure = f"https://127.0.0.1:{url.port}/x"
    named = {"sni_hostname": url.host}
    host = {"host": url.netloc.decode()}
    for http2 in (False, True):
        with httpx.Client(verify=context, http1=not http2, http2=http2, timeout=60) as client:
            answer = client.get(secure, headers=host, extensions=named)
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert answer.json()["headers"]["x-forwarded-proto"] == "https"


@pytest.mark.since("1.6.1")
def test_too_many_requests(site: Site, runner: Runner) -> None:
    token, secret = proxy_token(runner)
    good = {"modal-key": token, "modal-secret": secret}
    site.ask("private", headers=good)
    statuses = _at_once(site, "private", "/slow?2", 4, headers=good)
    assert sorted(statuses) == [201, 201, 429, 429]


def test_containers_for_the_target(site: Site) -> None:
    seen: set[str] = set()
    deadline = time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < deadline:
        answers: list[httpx.Response] = []
        _at_once(site, "scaled", "/slow?1", 3, answers=answers)
        answers = [site.ask("scaled"), *answers]
        seen |= {a.json()["container"] for a in answers}
    assert len(seen) >= 2


def test_server_that_never_listens(site: Site) -> None:
    answer = site.ask("never")
    assert answer.status_code == 500
    assert "startup timeout of 3 s" in answer.text


def test_container_that_ends_is_replaced(site: Site) -> None:
    before = site.ask("web_server").json()["container"]
    assert site.ask("web_server", "/exit", method="POST").status_code == 502
    # Its process is gone but its container is not: the function's own code decides that.
    answer = site.ask("web_server")
    assert answer.status_code in (201, 502)
    assert answer.status_code == 502 or answer.json()["container"] != before


def test_web_server_one_at_a_time(site: Site) -> None:
    site.ask("one")
    began = time.monotonic()
    assert _at_once(site, "one", "/slow?0.5", 3) == [201] * 3
    assert time.monotonic() - began > 1.4


def _at_once(
    site: Site,
    name: str,
    path: str,
    count: int,
    answers: list[httpx.Response] | None = None,
    **options: Any,
) -> list[int]:
    """The statuses of that many requests at the same time."""
    got: list[httpx.Response] = answers if answers is not None else []
    threads = [
        threading.Thread(target=lambda: got.append(site.ask(name, path, **options)))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer.status_code for answer in got]
