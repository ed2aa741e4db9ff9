"""Web functions and servers under load while versions change, containers die and the server dies.

``HOMEPORT_TEST_REDEPLOYS`` says how many versions follow each other (20: some minutes),
``HOMEPORT_TEST_UPLOAD_MB`` how much is uploaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from tests.chaos.fuzzing import memory_bytes
from tests.conformance.harness.server import Server

from homeport.node.leaks import run_directories
from homeport.node.runtime.records import find_processes, init_name, run_token

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
REDEPLOYS = int(os.environ.get("HOMEPORT_TEST_REDEPLOYS", "2"))
UPLOAD_MB = int(os.environ.get("HOMEPORT_TEST_UPLOAD_MB", "100"))
UPLOAD_GROWTH_MB = 64
"""How much the memory of server and node may grow for an upload of any size."""
under_load = pytest.mark.skipif(
    "HOMEPORT_CHAOS_S" not in os.environ, reason="needs a machine of its own: `make chaos` runs it"
)
APP = Path(__file__).with_name("web_load_app.py")
KINDS = ("function", "webserver", "server")
PATIENCE_S = 120.0


class World:
    """A server with the app deployed."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = int(server.url.rpartition(":")[2])

    def _python(self, *arguments: str, **environ: str) -> str:
        known = {"MODAL_CONFIG_PATH": "/nonexistent", **self.server.environment()}
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **known, **environ},
            capture_output=True,
            text=True,
            timeout=800,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy(self, edition: str) -> None:
        self._python("-m", "modal", "deploy", str(APP), EDITION=edition)

    def runs(self) -> dict[str, list[str]]:
        """The containers that each request with an id ran in, in order; asked once."""
        code = (
            "import json, modal\n"
            "ran = modal.Queue.from_name('web-load-ran', create_if_missing=True)\n"
            "found = []\n"
            "while part := ran.get_many(1000, block=False): found += part\n"
            "print('RUNS ' + json.dumps(found))"
        )
        found: dict[str, list[str]] = defaultdict(list)
        for request, container in json.loads(self._python("-c", code).partition("RUNS ")[2]):
            found[request].append(container)
        return found

    def kill_container(self, task_id: str) -> None:
        """SIGKILL everything in it."""
        tokens = map(run_token, run_directories(self.server.home))
        inside = find_processes(*(init_name(token, task_id) for token in tokens))
        assert inside
        for pid in inside:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("web-load") / "home"
    server = Server(home, {"HOMEPORT_TEMPLATES_MAX": "0"})  # containers have their tasks' names
    server.start()
    try:
        world = World(server)
        world.deploy("first")
        yield world
    finally:
        server.stop()


@dataclass
class Load:
    """Clients that ask without a pause; with ``patient`` they ask again when they get no answer."""

    world: World
    rest_s: float = 0.02
    with_ids: bool = False
    patient: bool = False
    clients: int = 4
    kinds: tuple[str, ...] = KINDS
    answers: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seen: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    """By kind, which editions and containers answered, in order."""
    failures: list[str] = field(default_factory=list)
    retries: int = 0
    _stopping: bool = False

    async def __aenter__(self) -> Load:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120))
        self._tasks = [
            asyncio.create_task(self._client(kind, number))
            for kind in self.kinds
            for number in range(self.clients)
        ]
        for kind in self.kinds:
            await self.until(lambda kind=kind: bool(self.answers[kind]))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._session.close()

    async def until(self, wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not wanted():
            assert time.monotonic() < deadline, (dict(self.answers), self.failures[:5])
            assert self.patient or not self.failures, self.failures[:5]
            await asyncio.sleep(0.05)

    async def _client(self, kind: str, number: int) -> None:
        count = 0
        while not self._stopping:
            count += 1
            asked = f"{kind}-{number}-{count}-{uuid.uuid4().hex[:6]}"
            deadline = time.monotonic() + PATIENCE_S
            while (failure := await self._ask(kind, asked, fresh=count % 10 == 0)) is not None:
                if not self.patient or time.monotonic() > deadline:
                    self.failures.append(f"{asked}: {failure}")
                    break
                self.retries += 1
                await asyncio.sleep(0.1)

    async def _ask(self, kind: str, asked: str, *, fresh: bool) -> str | None:
        """One request; what was wrong with its answer."""
        query = f"s={self.rest_s}" + (f"&id={asked}" if self.with_ids else "")
        headers = {"host": _host(kind)} | ({"connection": "close"} if fresh else {})
        url = f"http://127.0.0.1:{self.world.port}/?{query}"
        try:
            async with self._session.get(url, headers=headers) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return repr(error)
        if answer.status != 200:
            return f"{answer.status} {text}"
        edition, _, container = text.partition(" ")
        self.answers[kind] += 1
        if (edition, container) not in self.seen[kind]:
            self.seen[kind].append((edition, container))
        return None

    def has_seen(self, kind: str, edition: str) -> bool:
        return any(each == edition for each, _ in self.seen[kind])

    def containers(self, kind: str) -> list[str]:
        return [container for _, container in self.seen[kind]]


def _host(kind: str) -> str:
    name = {"server": "web-load-server"}.get(kind, f"web-load-{kind}")
    return f"homeport--{name}.localhost"


@under_load
def test_not_one_request_fails_while_versions_change(world: World) -> None:
    async def redeploy() -> Load:
        async with Load(world) as load:
            for number in range(REDEPLOYS):
                await asyncio.to_thread(world.deploy, f"number-{number}")
                for kind in KINDS:
                    await load.until(partial(load.has_seen, kind, f"number-{number}"))
        return load

    load = asyncio.run(redeploy())
    assert load.failures == []
    print(dict(load.answers))


@under_load
def test_only_what_ran_in_a_killed_container_runs_again(world: World) -> None:
    world.runs()

    async def kill() -> tuple[Load, str]:
        async with Load(world, rest_s=0.3, with_ids=True, kinds=("function",)) as load:
            await load.until(lambda: len(load.containers("function")) >= 2)
            victim = load.containers("function")[-1]
            world.kill_container(victim)
            done = load.answers["function"]
            await load.until(lambda: load.answers["function"] > done + 30)
        return load, victim

    load, victim = asyncio.run(kill())
    assert load.failures == []
    again = {request: where for request, where in world.runs().items() if len(where) > 1}
    assert all(where[0] == victim and len(where) == 2 for where in again.values()), again
    assert 1 <= len(again) <= 4  # it had four clients at most


@under_load
@pytest.mark.parametrize("kind", ["webserver", "server"])
def test_requests_for_a_killed_container_go_to_another(world: World, kind: str) -> None:
    async def kill() -> Load:
        async with Load(world, rest_s=0.2, kinds=(kind,)) as load:
            await load.until(lambda: len(load.containers(kind)) >= 2)
            victim = load.containers(kind)[-1]
            world.kill_container(victim)
            done = load.answers[kind]
            await load.until(lambda: load.answers[kind] > done + 30)
        return load

    assert asyncio.run(kill()).failures == []


def test_clients_that_ask_again_miss_nothing_when_the_server_is_killed(world: World) -> None:
    async def kill() -> Load:
        async with Load(world, patient=True) as load:
            for _ in range(2):
                await asyncio.to_thread(world.server.kill, "server")
                for kind in KINDS:
                    done = load.answers[kind]
                    await load.until(lambda kind=kind, done=done: load.answers[kind] > done + 20)
        return load

    load = asyncio.run(kill())
    assert load.failures == []


@pytest.mark.parametrize("kind", KINDS)
def test_upload_takes_little_memory(world: World, kind: str) -> None:
    status = json.loads(world.server.homeport("status", "--json").stdout)
    pids = [int(status["server_pid"]), int(status["node_pid"])]
    block = os.urandom(1_000_000)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(UPLOAD_MB):
            yield block

    async def watch(most: list[int]) -> None:
        while True:
            most[:] = [max(a, memory_bytes(pid)) for a, pid in zip(most, pids, strict=True)]
            await asyncio.sleep(0.1)

    async def upload() -> tuple[str, list[int]]:
        most = [0, 0]
        watching = asyncio.create_task(watch(most))
        headers = {"host": _host(kind), "content-length": str(UPLOAD_MB * 1_000_000)}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
            url = f"http://127.0.0.1:{world.port}/"
            async with session.post(url, headers=headers, data=body()) as answer:
                text = await answer.text()
        watching.cancel()
        return text, most

    before = [memory_bytes(pid) for pid in pids]
    began = time.monotonic()
    text, most = asyncio.run(upload())
    assert text == str(UPLOAD_MB * 1_000_000)
    grown = [round((after - b) / 2**20) for after, b in zip(most, before, strict=True)]
    print(f"{kind}: {time.monotonic() - began:.1f} s, server and node grew by {grown} MiB")
    assert max(grown) < UPLOAD_GROWTH_MB
