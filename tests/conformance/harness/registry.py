"""A container registry with one image and several accounts, and Amazon's way to a password."""

from __future__ import annotations

import base64
import json
import re
import shutil
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from homeport.link.messages import ImageConfig
from homeport.node.builder.oci import LayoutWriter

KEY_ID = "AKIDEXAMPLE"
REGION = "eu-west-1"
_SIGNED = re.compile(
    rf"AWS4-HMAC-SHA256 Credential={KEY_ID}/\d{{8}}/{REGION}/ecr/aws4_request, "
    r"SignedHeaders=\S+, Signature=[0-9a-f]{64}"
)


def busybox_layout(folder: Path, files: Mapping[str, str]) -> Path:
    """An OCI layout of a busybox with ``files`` (texts by absolute path; those in /bin run)."""
    tree = folder / "tree"
    (tree / "bin").mkdir(parents=True)
    for name in ("tmp", "root", "proc", "dev", "sys", "etc"):
        (tree / name).mkdir()
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin" / "busybox")
    for name in ("sh", "cat", "dd", "df", "sleep", "rm", "id", "tail", "echo", "env", "stat", "ls"):
        (tree / "bin" / name).symlink_to("busybox")
    for name, text in files.items():
        path = tree / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if name.startswith("/bin/") else 0o644)
    writer = LayoutWriter(folder / "layout")
    writer.add_layer("", tree)
    writer.finish("v1", ImageConfig(env={"PATH": "/bin"}, cmd=["sh"]), b"")
    return folder / "layout"


class Registry:
    """Serves a layout under every name to the accounts of ``passwords`` (user → password).

    ``POST /`` is ECR's ``GetAuthorizationToken``: it gives the password of ``AWS`` to whoever signs
    with ``KEY_ID`` for ``REGION``. ``users`` are those who were let in.
    """

    def __init__(self, layout: Path, passwords: Mapping[str, str]) -> None:
        self.users: set[str] = set()
        self._layout = layout
        self._passwords = passwords
        registry = self

        class Handler(_Handler):
            server_registry = registry

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Registry:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def address(self) -> str:
        """Its host:port."""
        return f"127.0.0.1:{self._server.server_port}"

    def lets_in(self, authorization: str) -> bool:
        """Whether these are the credentials of an account."""
        kind, _, token = authorization.partition(" ")
        if kind != "Basic":
            return False
        user, _, password = base64.b64decode(token).decode().partition(":")
        if self._passwords.get(user) != password:
            return False
        self.users.add(user)
        return True

    def content(self, name: str) -> tuple[str, str, bytes] | None:
        """(media type, digest, bytes) of a manifest or blob."""
        index = json.loads((self._layout / "index.json").read_text())["manifests"][0]
        digest = name if name.startswith("sha256:") else index["digest"]
        file = self._layout / "blobs" / digest.replace(":", "/")
        if not file.exists():
            return None
        kind = index["mediaType"] if digest == index["digest"] else "application/octet-stream"
        return kind, digest, file.read_bytes()

    def ecr_token(self, authorization: str) -> str:
        """What Amazon answers to a signed request; empty if it is not signed so."""
        if not _SIGNED.fullmatch(authorization):
            return ""
        return base64.b64encode(f"AWS:{self._passwords['AWS']}".encode()).decode()


class _Handler(BaseHTTPRequestHandler):
    server_registry: Registry

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not self.server_registry.lets_in(self.headers.get("Authorization") or ""):
            self._answer(401, b"", {"WWW-Authenticate": 'Basic realm="registry"'})
        elif self.path == "/v2/":
            self._answer(200, b"{}", {})
        elif (found := self.server_registry.content(self.path.rsplit("/", 1)[-1])) is None:
            self._answer(404, b"", {})
        else:
            kind, digest, data = found
            self._answer(200, data, {"Content-Type": kind, "Docker-Content-Digest": digest})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.server_registry.ecr_token(self.headers.get("Authorization") or "")
        if not token or "GetAuthorizationToken" not in (self.headers.get("X-Amz-Target") or ""):
            self._answer(400, b'{"__type": "UnrecognizedClientException"}', {})
            return
        data = {"authorizationData": [{"authorizationToken": token}]}
        self._answer(200, json.dumps(data).encode(), {})

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return
