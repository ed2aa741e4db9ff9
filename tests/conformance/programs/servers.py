"""Servers: requests go straight to a port of their containers; the test makes them."""

import asyncio
import os
import subprocess
import sys
import threading
import time

import modal

app = modal.App("conformance-servers")
NEW = hasattr(modal, "sessioned")  # clients before 1.6.1 have servers that can do less

SERVER = r"""
import os, sys, time, threading, base64, gzip, hashlib, json
gone = []  # streams whose clients went away
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def setup(self):
        super().setup()
        self.requests = 0
    def do_GET(self):
        self.requests += 1
        path, _, query = self.path.partition("?")
        if path == "/early":  # no word of the body is read
            self.close_connection = True
            self.send_response(413); self.send_header("Content-Length", "4"); self.end_headers()
            self.wfile.write(b"full"); self.wfile.flush()
            time.sleep(2)  # a connection closed with something unread is reset
            return
        if path == "/half":
            self.close_connection = True
            self.send_response(200); self.send_header("Content-Length", "100"); self.end_headers()
            return self.wfile.write(b"half")
        if path == "/gzip":
            body = gzip.compress(b"a page " * 1000)
            self.send_response(206); self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Range", "bytes 0-9/100")
            self.send_header("Content-Length", str(len(body))); self.end_headers()
            return self.wfile.write(body)
        if path == "/long":
            self.send_response(200); self.send_header("X-Long", "x" * 30000)
            self.send_header("Content-Length", "0"); self.end_headers()
            return
        size = int(self.headers.get("Content-Length") or 0)
        digest = hashlib.sha256()
        if self.headers.get("Transfer-Encoding") == "chunked":
            while (length := int(self.rfile.readline(), 16)):
                digest.update(self.rfile.read(length)); size += length
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = size
            while left:
                part = self.rfile.read(min(left, 65536)); digest.update(part); left -= len(part)
        if path == "/ws":
            return self.upgrade()
        if path == "/slow":
            time.sleep(float(query))
        if path == "/exit":
            os._exit(1)
        if path == "/stream":
            self.send_response(200); self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
            for number in range(int(query)):
                data = f"data: {number} {time.time()}\n\n".encode()
                try:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data)); self.wfile.flush()
                except OSError:
                    gone.append(number)
                    raise
                time.sleep(0.5)
            self.wfile.write(b"0\r\n\r\n")
            return
        if path == "/big":
            self.send_response(200); self.send_header("Content-Length", query); self.end_headers()
            if self.command != "HEAD":
                left = int(query)
                while left:
                    part = min(left, 1 << 20); self.wfile.write(b"x" * part); left -= part
            return
        body = json.dumps({
            "method": self.command, "path": self.path, "size": size, "sha": digest.hexdigest(),
            "container": os.environ["MODAL_TASK_ID"], "requests": self.requests, "gone": len(gone),
            "headers": {k.lower(): v for k, v in self.headers.items()},
        }).encode()
        self.send_response(201); self.send_header("Content-Length", str(len(body))); self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    do_POST = do_PUT = do_HEAD = do_OPTIONS = do_GET
    def upgrade(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101); self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade"); self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.close_connection = True
        while True:
            first, second = self.rfile.read(2)
            length = second & 127
            if length == 126: length = int.from_bytes(self.rfile.read(2), "big")
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            if first & 15 == 8:
                self.wfile.write(bytes([0x88, len(data)]) + data); return
            answer = data[::-1]
            self.wfile.write(bytes([0x80 | (first & 15), len(answer)]) + answer); self.wfile.flush()

time.sleep(float(sys.argv[1]))
class Server(ThreadingHTTPServer):
    request_queue_size = 256
Server(("0.0.0.0", int(sys.argv[2])), Handler).serve_forever()
"""


def serve(port, delay=0.0):
    return subprocess.Popen([sys.executable, "-c", SERVER, str(delay), str(port)])


@app.server(port=8000, unauthenticated=True, max_containers=1)
class Open:
    @modal.enter()
    def start(self):
        self.process = serve(8000, delay=1.0)

    @modal.exit()
    def stop(self):
        self.process.terminate()


@app.server(port=8001, max_containers=1, **({"max_concurrency": 2} if NEW else {}))
class Private:
    @modal.enter()
    def start(self):
        serve(8001)


@app.server(port=8002, unauthenticated=True, target_concurrency=1, max_containers=3)
class Scaled:
    @modal.enter()
    def start(self):
        serve(8002)


if NEW:

    @app.server(port=8006, unauthenticated=True, max_concurrency=1, max_containers=3)
    @modal.sessioned()
    class Sticky:
        @modal.enter()
        def start(self):
            serve(8006)


@app.server(port=8003, unauthenticated=True, startup_timeout=3, max_containers=1)
class NeverListens:
    @modal.enter()
    def start(self):
        pass


class Raw:
    """Messages of gRPC that are bytes."""

    __content_subtype__ = "proto"

    def encode(self, message, _type):
        return message

    def decode(self, data, _type):
        return data


class Echo:
    def __mapping__(self):
        from grpclib.const import Cardinality, Handler

        return {"/t.Echo/Each": Handler(self.each, Cardinality.STREAM_STREAM, bytes, bytes)}

    async def each(self, stream):
        async for message in stream:
            await stream.send_message(message[::-1])
        await stream.send_trailing_metadata(metadata={"container": os.environ["MODAL_TASK_ID"]})


async def serve_grpc(port):
    from grpclib.server import Server

    server = Server([Echo()], codec=Raw())
    await server.start("0.0.0.0", port)
    await server.wait_closed()


@app.server(port=8007, unauthenticated=True, h2_enabled=True, max_containers=1, startup_timeout=120)
class Grpc:
    @modal.enter()
    def start(self):
        threading.Thread(target=asyncio.run, args=(serve_grpc(8007),), daemon=True).start()


@app.function(max_containers=1)
@modal.concurrent(max_inputs=10)
@modal.web_server(8004)
def web_server():
    serve(8004)


@app.function(max_containers=1)
@modal.web_server(8005)
def one_at_a_time():
    serve(8005)


@app.local_entrypoint()
def main():
    import json

    urls = {
        "open": Open.get_url(),
        "private": Private.get_url(),
        "scaled": Scaled.get_url(),
        "sticky": Sticky.get_url() if NEW else "",
        "grpc": Grpc.get_url(),
        "never": NeverListens.get_url(),
        "web_server": web_server.get_web_url(),
        "one": one_at_a_time.get_web_url(),
    }
    from reporting import Report

    if NEW:
        Report().note("token", Private._get_service_function()._get_flash_auth_token())
    print("URLS " + json.dumps(urls), flush=True)
    while not os.path.exists(os.environ["CONFORMANCE_REPORT"] + ".done"):
        time.sleep(0.1)
