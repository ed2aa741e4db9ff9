"""Hostile requests of every kind: answered with a reason, and the server serves the next.

``HOMEPORT_FUZZ_REQUESTS`` says how many, ``HOMEPORT_FUZZ_SEED`` repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import tomllib
from collections.abc import Iterator

import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError
from tests.chaos import hostile_http
from tests.chaos.fuzzing import METHODS, Report, fuzz, said, sound_call
from tests.conformance.harness.bare import BareServer
from tests.conformance.harness.lossy import RawCodec

from homeport.gateway.http import ACCESS
from homeport.rpc.auth import ANONYMOUS_METHODS
from homeport.transport.dispatch import NOT_FOUND, OK, RESOURCE_EXHAUSTED, UNAUTHENTICATED

REQUESTS = int(os.environ.get("HOMEPORT_FUZZ_REQUESTS", "4000"))
SEED = os.environ.get("HOMEPORT_FUZZ_SEED", "1")

STRANGERS = {
    "no token": {},
    "an unknown token": {"x-modal-token-id": "ak-x", "x-modal-token-secret": "as-x"},
    "half a token": {"x-modal-token-id": "ak-x"},
    "says it is a container": {"x-modal-client-type": "3", "x-modal-task-id": "ta-x"},
    "another kind of token": {"x-modal-auth-token": "e30.e30.e30", "authorization": "Bearer x"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareServer]:
    server = BareServer(tmp_path_factory.mktemp("fuzz") / "home")
    server.start()
    yield server
    server.stop()


@pytest.mark.timeout(240 + REQUESTS // 20)
def test_hostile_requests_are_answered(server: BareServer) -> None:
    report = fuzz(server, SEED, REQUESTS)
    again = f"python -m tests.chaos.fuzzing --seed {SEED} --requests {REQUESTS}"
    assert not report.defects, f"{report}\nto repeat it: {again}"
    assert _saw_much(report), report


def _saw_much(report: Report) -> bool:
    """Requests got past the first checks: most of what is answered at all was answered well."""
    return report.statuses[OK] > REQUESTS // 10 and len(report.answered) > 50


@pytest.mark.parametrize("stranger", STRANGERS)
def test_nothing_without_a_token(server: BareServer, stranger: str) -> None:
    port = int(server.url.rpartition(":")[2])
    statuses = asyncio.run(_ask_for_all(port, STRANGERS[stranger]))
    open_to_all = {name for name, status in statuses.items() if status != UNAUTHENTICATED}
    assert open_to_all == ANONYMOUS_METHODS
    answers = {OK, NOT_FOUND, RESOURCE_EXHAUSTED}  # strangers before may have asked too often
    assert {statuses[name] for name in ANONYMOUS_METHODS} <= answers


async def _ask_for_all(port: int, metadata: dict[str, str]) -> dict[str, int]:
    channel = Channel("127.0.0.1", port, codec=RawCodec())
    statuses: dict[str, int] = {}
    try:
        for method in METHODS.values():
            cardinality = Cardinality.UNARY_STREAM if method.is_stream else Cardinality.UNARY_UNARY
            statuses[method.name] = OK
            try:
                async with channel.request(
                    method.path,
                    cardinality,
                    bytes,
                    bytes,
                    timeout=30,
                    metadata={"x-modal-client-version": "1.6.4", **metadata},
                ) as stream:
                    await stream.send_message(b"", end=True)
                    await stream.recv_message()
            except GRPCError as error:
                statuses[method.name] = error.status.value
    finally:
        channel.close()
    return statuses


def test_no_route_without_its_right(server: BareServer) -> None:
    """Of each route, as a stranger and with a signature that is not ours."""
    port = int(server.url.rpartition(":")[2])

    async def statuses(path: str) -> set[int]:
        found: set[int] = set()
        for method in ("GET", "POST", "PUT"):
            for headers in ("", "Authorization: Bearer nk-x.as-x\r\n"):
                head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}"
                request = f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n"
                found.add(await hostile_http.ask(port, request.encode()))
        return found - {405}

    expected = {
        "everybody": {200},
        "who knows the id": {404},
        "who has a signed URL": {403},
        "nodes": {401},
    }
    for route, access in ACCESS.items():
        path = re.sub(r"\{\w+\}", "0" * 64, route)
        query = f"?t={'A' * 90}" if access == "who has a signed URL" else ""
        assert asyncio.run(statuses(path + query)) == expected[access], route


def test_bodies_that_are_no_messages_are_refused(server: BareServer) -> None:
    """By each route for nodes: what is no text, too deep, of another kind, cut off."""
    port = int(server.url.rpartition(":")[2])
    routes = [re.sub(r"\{\w+\}", "vo-1", route) for route in ACCESS if ACCESS[route] == "nodes"]
    for route in routes:
        for body in hostile_http.BODIES:
            for method in ("POST", "PUT"):
                head = f"{method} {route} HTTP/1.1\r\nHost: localhost\r\n{_as_node(server)}\r\n"
                head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                status = asyncio.run(hostile_http.ask(port, head.encode() + body))
                assert 200 <= status < 500, f"{method} {route} gave {status}: {body[:99]!r}"


def _as_node(server: BareServer) -> str:
    token = tomllib.loads((server.home / "credentials.toml").read_text())["node_token"]
    return f"Authorization: Bearer {token}"


def test_hostile_http_is_answered(server: BareServer) -> None:
    port = int(server.url.rpartition(":")[2])
    node = _as_node(server)
    log = len(server.log.read_bytes())

    async def ask_all() -> set[tuple[bool, int]]:
        seen: set[tuple[bool, int]] = set()
        for number in range(max(REQUESTS // 4, 200)):
            choice = random.Random(f"{SEED} http {number}")
            is_node = choice.random() < 0.5
            headers = [node] if is_node else []
            data = hostile_http.request(choice, headers)
            status = await hostile_http.ask(port, data)
            assert status < 500 or status in (501, 503), f"{number} gave {status}: {data[:300]!r}"
            seen.add((is_node, status))
        return seen

    seen = asyncio.run(ask_all())
    assert {(False, 200), (False, 401), (False, 404)} <= seen
    assert not list(said(server.log.read_bytes()[log:]))
    assert not sound_call(server)
