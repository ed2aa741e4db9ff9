"""Certificates of a public authority, here Pebble: Let's Encrypt's test server."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path

import httpx
import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.server import Server, server_with

from homeport.kernel.certificates import Authority

pytestmark = [
    pytest.mark.newest,
    pytest.mark.skipif(shutil.which("pebble") is None, reason="Pebble is not installed"),
]
DOMAIN = "apps.example.org"
PROGRAM = """
import modal

app = modal.App("acme")

@app.function()
@modal.asgi_app(label="hello")
def hello():
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"hello"})
    return answer
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Pebble:
    """The authority, and a name server that leads every name to this machine."""

    def __init__(self, folder: Path, port: int) -> None:
        """``port`` is where Pebble looks whether a name is the server's."""
        folder.mkdir()
        self.folder = folder
        own = Authority.from_folder(folder / "own")
        certificate, key = own.issue(["localhost"])
        (folder / "cert.pem").write_text(certificate)
        (folder / "key.pem").write_text(key)
        self.own_file = folder / "own" / "ca.pem"
        self._listen, self._manage = free_port(), free_port()
        names, self._challenge = free_port(), free_port()
        config = {
            "listenAddress": f"127.0.0.1:{self._listen}",
            "managementListenAddress": f"127.0.0.1:{self._manage}",
            "certificate": str(folder / "cert.pem"),
            "privateKey": str(folder / "key.pem"),
            "httpPort": free_port(),
            "tlsPort": port,
        }
        (folder / "config.json").write_text(json.dumps({"pebble": config}))
        self.log = folder / "log"
        authority = ["pebble", "-config", str(folder / "config.json")]
        resolver = ["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]
        resolver += ["-dns01", f"127.0.0.1:{names}", "-management", f"127.0.0.1:{self._challenge}"]
        resolver += ["-http01", "", "-https01", "", "-tlsalpn01", ""]
        environ = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PATH": "/usr/bin:/bin"}
        with self.log.open("wb") as log:
            self._running = [
                subprocess.Popen(command, env=environ, stdout=log, stderr=log)
                for command in (resolver, [*authority, "-dnsserver", f"127.0.0.1:{names}"])
            ]

    @property
    def directory(self) -> str:
        return f"https://localhost:{self._listen}/dir"

    def root(self) -> str:
        """The certificate that those who trust this authority have, PEM."""
        context = ssl.create_default_context(cafile=str(self.own_file))
        url = f"https://localhost:{self._manage}/roots/0"
        with urllib.request.urlopen(url, context=context) as answer:
            return answer.read().decode()

    def orders(self) -> int:
        return self.log.read_text().count("Issued certificate serial")

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def pebble(folder: Path, port: int) -> Generator[Pebble]:
    running = Pebble(folder, port)
    try:
        until(lambda: running.root())
        yield running
    finally:
        running.stop()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError, ssl.SSLError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.2)


def greeted(server: Server, name: str, root: str) -> str:
    """What ``name`` answers over TLS to somebody who trusts ``root`` alone."""
    port = int(server.url.rpartition(":")[2])
    context = ssl.create_default_context(cadata=root)
    transport = httpx.HTTPTransport(verify=context)
    with httpx.Client(transport=transport, timeout=60) as client:
        answer = client.get(
            f"https://127.0.0.1:{port}/",
            headers={"Host": name},
            extensions={"sni_hostname": name},
        )
        return answer.text


def vouched(server: Server, name: str, root: str) -> bool:
    port = int(server.url.rpartition(":")[2])
    context = ssl.create_default_context(cadata=root)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        context.wrap_socket(sock, server_hostname=name).close()
    return True


def test_names_get_certificates_of_a_public_authority(client: Client, tmp_path: Path) -> None:
    (tmp_path / "acme_app.py").write_text(PROGRAM)
    port = free_port()
    with pebble(tmp_path / "pebble", port) as authority:
        environ = {
            "HOMEPORT_WEB_DOMAIN": DOMAIN,
            "HOMEPORT_ACME_DIRECTORY": authority.directory,
            "HOMEPORT_ACME_EMAIL": "somebody@example.org",
            "REQUESTS_CA_BUNDLE": str(authority.own_file),
        }
        root = authority.root()
        with server_with(tmp_path / "home", environ, port=port) as server:
            runner = Runner(server, tmp_path)
            said = runner.cli(client, "deploy", str(tmp_path / "acme_app.py")).succeeded()
            name = re.search(rf"https://(\S+\.{DOMAIN}):{port}", said.stdout)[1]
            until(lambda: vouched(server, name, root))
            until(lambda: vouched(server, DOMAIN, root))
            assert greeted(server, name, root) == "hello"
            with pytest.raises(ssl.SSLError):
                vouched(server, f"other--one.{DOMAIN}", root)  # leads nowhere: nobody asked for it
            assert authority.orders() == 2
            server.kill("server")
            until(lambda: vouched(server, name, root))
            assert greeted(server, name, root) == "hello"
            runner.cli(client, "deploy", str(tmp_path / "acme_app.py")).succeeded()
            assert authority.orders() == 2
            key = next((server.home / "acme").glob(f"{name}.pem"))
            assert key.stat().st_mode & 0o777 == 0o600
