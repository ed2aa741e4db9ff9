"""Programs with web functions, and clients that ask them."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from .clients import VERSIONS, Client, install
from .programs import Runner, Started

URLS = re.compile(r"^URLS (\{.*\})$", re.MULTILINE)
PATIENCE_S = 30.0


class Site:
    """The web functions of the running program; ``seen`` is what their containers noted."""

    def __init__(self, urls: dict[str, str], program: Started, runner: Runner, client: Client):
        self.urls = urls
        self.program = program
        self._runner = runner
        self._client = client

    @property
    def certificates(self) -> Path:
        """The file with the server's own authority."""
        return self._runner.server.home / "ca.pem"

    def address(self, name: str, path: str = "/") -> tuple[str, dict[str, str]]:
        """Where to connect, and the ``Host`` to ask: ``*.localhost`` is this machine."""
        url = httpx.URL(self.urls[name])
        return f"http://127.0.0.1:{url.port}{path}", {"host": url.netloc.decode()}

    def ask(
        self, name: str, path: str = "/", method: str = "GET", **options: Any
    ) -> httpx.Response:
        """One request; with a cold start it may have to be continued, as a browser does."""
        url, host = self.address(name, path)
        headers = {**host, **options.pop("headers", {})}
        http2 = bool(options.pop("http2", False))
        follow = bool(options.pop("follow", True))
        with httpx.Client(timeout=60, http1=not http2, http2=http2) as client:
            return client.request(method, url, headers=headers, follow_redirects=follow, **options)

    def seen(self, key: str) -> Any:
        """What a container noted under ``key``."""
        code = (
            "import json, modal, sys\n"
            "seen = modal.Dict.from_name('conformance-web-seen')\n"
            "print('SEEN ' + json.dumps(seen.get(sys.argv[1])))"
        )
        done = self._runner.python(self._client, "-c", code, key).succeeded()
        return json.loads(done.stdout.partition("SEEN ")[2])

    def eventually(self, key: str, wanted: Callable[[Any], bool]) -> Any:
        """The same, once it is as ``wanted``; the last value when patience ends."""
        deadline = time.monotonic() + PATIENCE_S
        while not wanted(value := self.seen(key)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return value


@contextlib.contextmanager
def running(runner: Runner, client: Client, program: str) -> Iterator[Site]:
    """That program, which prints its URLs and then goes on until it is interrupted."""
    started = runner.start(client, program)
    started.wait_for(lambda output: URLS.search(output) is not None, timeout_s=400.0)
    found = URLS.search(started.output())
    assert found is not None
    try:
        yield Site(json.loads(found[1]), started, runner, client)
    finally:
        started.interrupt(presses=3)


def proxy_token(runner: Runner) -> tuple[str, str]:
    """A new proxy token; only newer clients can make one."""
    code = (
        "import modal\n"
        "made = modal.Workspace.from_context().proxy_tokens.create(name='of a test')\n"
        "print('TOKEN', made.token_id, made.token_secret)"
    )
    done = runner.python(install(VERSIONS[-1]), "-c", code).succeeded()
    _, token, secret = done.stdout.partition("TOKEN")[2].split(" ")
    return token, secret.strip()
