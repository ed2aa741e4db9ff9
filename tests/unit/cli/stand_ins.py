"""Programs that stand in for the server and the node of ``homeport up``.

``server PORT EVENTS``: answers ``/healthz``, counts nodes by ``/connect``.
``node URL EVENTS``: connects, then waits. Both append what happens to them to EVENTS.
``up PLAN``: a ``homeport up`` of those, described by a JSON file.
Behaviours by name: ``fail`` (exit at once), ``crash`` (exit 0.1 s after the start),
``stubborn`` (ignore SIGTERM), ``normal``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def note(events: str, line: str) -> None:
    with open(events, "a") as file:
        file.write(f"{line}\n")


class Health(BaseHTTPRequestHandler):
    nodes = 0

    def do_GET(self) -> None:
        if self.path == "/connect":
            Health.nodes += 1
        body = json.dumps({"status": "ok", "nodes": Health.nodes, "version": "9.9"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def behave(kind: str, name: str, events: str) -> None:
    note(events, f"{name} start {os.getpid()}")
    if kind == "fail":
        print(f"{name}: the database is newer than this program", file=sys.stderr)
        sys.exit(2)
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: (note(events, f"{name} stop"), os._exit(0)))
    if kind == "crash":
        threading.Timer(0.1, lambda: os._exit(7)).start()


def server(port: str, events: str, kind: str) -> None:
    listener = ThreadingHTTPServer(("127.0.0.1", int(port)), Health)
    behave(kind, "server", events)
    listener.serve_forever()


def node(url: str, events: str, kind: str) -> None:
    behave(kind, "node", events)
    urllib.request.urlopen(f"{url}/connect").read()
    note(events, "node connected")
    while True:
        time.sleep(60)


def up(plan_file: str) -> None:
    from homeport.cli.instance import UpLock, local_url
    from homeport.cli.supervisor import ChildFailedError, ChildSpec, Plan, RestartBudget, Supervisor
    from homeport.settings import load

    plan = json.loads(Path(plan_file).read_text())
    settings = load(Path(plan["home"]))
    url = local_url("127.0.0.1", plan["port"])
    python = (sys.executable, __file__)

    def child(name: str, argument: str) -> ChildSpec:
        return ChildSpec(
            name=name,
            argv=(*python, name, argument, plan["events"], plan.get(name, "normal")),
            stop_grace_s=plan.get("grace_s", 30.0),
            budget=RestartBudget(first_delay_s=0.01),
        )

    def say(line: str) -> None:
        note(plan["events"], f"log {line}")

    whole = Plan(url, child("server", str(plan["port"])), child("node", url), settings.home)
    try:
        with UpLock(settings) as lock:
            Supervisor(whole, lock, say, lambda answer: say(f"ready nodes={answer['nodes']}")).run()
    except ChildFailedError as error:
        say(error.message)
        sys.exit(1)


if __name__ == "__main__":
    {"server": server, "node": node, "up": up}[sys.argv[1]](*sys.argv[2:])
