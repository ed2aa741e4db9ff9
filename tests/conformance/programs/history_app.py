"""An app whose calls are counted: ends of every kind, a class with variants, a server."""

import subprocess
import sys
import time

import modal

app = modal.App("conformance-history")


@app.function(max_containers=1)
def double(number):
    return 2 * number


@app.function(max_containers=1)
def fail():
    raise ValueError("as it should")


@app.function(max_containers=1, timeout=1)
def linger():
    time.sleep(60)


@app.function(max_containers=1)
def sleep(seconds):
    time.sleep(seconds)


@app.cls(max_containers=1)
class Greeter:
    name: str = modal.parameter()

    @modal.method()
    def hello(self):
        return f"Hello, {self.name}"


@app.function(max_containers=1)
def look_around(own, other):
    """What a container is told of its own app, and of another one."""

    def told(name):
        try:
            return modal.App.lookup(name).stats().functions.total.calls.total
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    return [told(own), told(other)]


if hasattr(app, "server"):
    PAGES = r"""
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        status = int(self.path.partition("?")[0].strip("/") or 200)
        self.send_response(status); self.send_header("Content-Length", "0"); self.end_headers()

ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

    @app.server(port=8000, unauthenticated=True, max_containers=1)
    class Site:
        @modal.enter()
        def start(self):
            self.process = subprocess.Popen([sys.executable, "-c", PAGES])

        @modal.exit()
        def stop(self):
            self.process.terminate()
