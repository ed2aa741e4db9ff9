"""Web functions and servers for a load: each says its edition and container, and rests if asked to."""

import asyncio
import hashlib
import os
import subprocess
import sys
from urllib.parse import parse_qs

import modal

app = modal.App("web-load")
edition = {"EDITION": os.environ.get("EDITION", "")}
ran = modal.Queue.from_name("web-load-ran", create_if_missing=True)
kept = {
    "secrets": [modal.Secret.from_dict(edition)],
    "min_containers": 2,
    "max_containers": 4,
}

SERVER = r"""
import os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 65536  # an answer is sent whole, or not at all
    def log_message(self, *_): pass
    def do_GET(self):
        time.sleep(float(parse_qs(self.path.partition("?")[2]).get("s", ["0"])[0]))
        body = (os.environ["EDITION"] + " " + os.environ["MODAL_TASK_ID"]).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body)))
        self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        left = size = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        body = str(size).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body)))
        self.end_headers(); self.wfile.write(body)

class Server(ThreadingHTTPServer):
    request_queue_size = 256
Server(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""


def serve(port):
    subprocess.Popen([sys.executable, "-c", SERVER, str(port)])


@app.function(**kept)
@modal.concurrent(max_inputs=20)
@modal.asgi_app(label="web-load-function")
def function():
    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            raise RuntimeError
        query = parse_qs(scope["query_string"].decode())
        if "id" in query:
            await ran.put.aio((query["id"][0], os.environ["MODAL_TASK_ID"]))
        size, digest = 0, hashlib.sha256()
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            digest.update(message.get("body", b""))
            if not message.get("more_body"):
                break
        await asyncio.sleep(float(query.get("s", ["0"])[0]))
        said = f"{os.environ['EDITION']} {os.environ['MODAL_TASK_ID']}"
        body = said.encode() if scope["method"] == "GET" else str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return application


@app.function(**kept)
@modal.concurrent(max_inputs=20)
@modal.web_server(8000, label="web-load-webserver")
def webserver():
    serve(8000)


@app.server(port=8000, unauthenticated=True, **kept)
class Server:
    @modal.enter()
    def start(self):
        serve(8000)
