"""github.com and gitlab.com as seen from a build: repositories for those who know the token.

Started by the ``git`` beside it, in the container itself, as the proxy that git is told to use.
"""

import base64
import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PORT = 8123
ACCOUNTS = {"github.com": "me:gh-token-1", "gitlab.com": "me:gl-token-2"}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.answer(self.chunks())
        else:
            self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def chunks(self):
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, body):
        url = urlsplit(self.path)
        wanted = "Basic " + base64.b64encode(ACCOUNTS[url.hostname].encode()).decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="private"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with open("/srv/seen", "a") as seen:
            seen.write(f"{url.hostname}{url.path}\n")
        environ = {
            **os.environ,
            "GIT_PROJECT_ROOT": f"/srv/git/{url.hostname}",
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": url.path,
            "QUERY_STRING": url.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
        }
        done = subprocess.run(
            ["/usr/bin/git", "http-backend"], input=body, env=environ, stdout=subprocess.PIPE
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def main():
    try:
        server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    except OSError:  # it is there already
        socket.create_connection(("127.0.0.1", PORT)).close()
        return
    if os.fork():
        return
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
