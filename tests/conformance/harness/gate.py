"""A way to a server that speaks S3 on which uploads can be held up."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

PATIENCE_S = 120.0
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


class Gate:
    """Passes requests on to ``target``; while it is ``closed``, uploads wait in front of it.

    An upload whose sender is gone when the gate opens is dropped, as by a server that was slow to read.
    With ``authorization`` requests have that header instead of their own. ``/_told`` is answered when ``tell`` was called: so a program waits for a test.
    """

    def __init__(self, target: str, *, authorization: str = "") -> None:
        self._target = target.removeprefix("http://")
        self._authorization = authorization
        self._open = threading.Event()
        self._open.set()
        self._told = threading.Event()
        self._waiting = threading.Semaphore(0)
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/_told":
                    gate._told.wait(PATIENCE_S)
                    self.send_response(200)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    gate._pass(self, b"")

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if not gate._open.is_set():
                    gate._waiting.release()
                    gate._open.wait(PATIENCE_S)
                if _is_there(self.connection):
                    gate._pass(self, body)

            do_HEAD = do_DELETE = do_GET  # noqa: N815
            do_POST = do_PUT  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self._server.shutdown()
        self._server.server_close()

    def close(self) -> None:
        """Hold uploads up from now on."""
        self._open.clear()

    def open(self) -> None:
        """Let them through."""
        self._open.set()

    def await_upload(self) -> None:
        """Until another upload waits in front of the gate."""
        assert self._waiting.acquire(timeout=PATIENCE_S), "nobody wants to upload anything"

    def tell(self) -> None:
        """Let the program go on that asked for ``/_told``."""
        self._told.set()

    def _pass(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in _HOP
        }
        if self._authorization:
            headers = {
                name: value for name, value in headers.items() if name.lower() != "authorization"
            }
            headers["Authorization"] = self._authorization
        connection = http.client.HTTPConnection(self._target, timeout=PATIENCE_S)
        try:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                request.send_header(name, value)
        length = answer.getheader("Content-Length") if request.command == "HEAD" else None
        request.send_header("Content-Length", length or str(len(data)))
        request.end_headers()
        request.wfile.write(data)


def _is_there(connection: socket.socket) -> bool:
    """Whether the other side has not hung up."""
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return not readable or bool(connection.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
