"""Tunnels: into sandboxes with TLS, HTTP/2 and raw TCP, and from function containers."""

import base64
import inspect
import json
import os
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import modal
import modal.experimental

app = modal.App("conformance-tunnels")

# Says what it was sent, as lines; "bye" ends it. Listens a moment after it was started.
ECHO = """
import socket, sys, threading, time
time.sleep(0.5)
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
def serve(connection):
    with connection, connection.makefile("rwb") as file:
        for line in file:
            file.write(b"echo " + line)
            file.flush()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],)).start()
"""


# Tells what it was asked, as JSON; "/socket" becomes a WebSocket that echoes.
TELLER = """
import base64, hashlib, json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path.startswith("/socket"):
            return self.echo()
        if "length" in self.path:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (b"one", b"two"):
                self.wfile.write(b"%x\\r\\n%b\\r\\n" % (len(part), part))
            self.wfile.write(b"0\\r\\n\\r\\n")
            return
        size = int(self.headers.get("Content-Length") or 0)
        body = json.dumps({
            "port": self.server.server_port, "method": self.command, "path": self.path,
            "headers": self.headers.items(), "body": self.rfile.read(size).decode(),
        }).encode()
        self.send_response(203)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_PUT = do_GET
    def echo(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept",
                         base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        said = self.headers.get("X-Verified-User-Data", "").encode()
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 15 == 8:
                return
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(head[1] & 127)))
            data = said + b" " + data
            self.wfile.write(bytes([0x81, len(data)]) + data)
            self.wfile.flush()
for port in sys.argv[2:]:
    import threading
    other = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def authority():
    return ssl.create_default_context(cafile=sys.argv[1])


def asks(connection, text):
    with connection, connection.makefile("rwb") as file:
        file.write(text.encode() + b"\n")
        file.flush()
        return file.readline().decode().strip()


def tls(where, protocols=None):
    context = authority()
    if protocols:
        context.set_alpn_protocols(protocols)
    plain = socket.create_connection(where, timeout=30)
    return context.wrap_socket(plain, server_hostname=where[0])


def sandbox(address, port, **ports):
    return modal.Sandbox.create("python", "-c", ECHO, address, str(port), app=APP, **ports)


def encrypted():
    running = sandbox("0.0.0.0", 8000, encrypted_ports=[8000])
    tunnel = running.tunnels()[8000]
    answer = asks(tls(tunnel.tls_socket), "one")
    again = running.tunnels()[8000].tls_socket == tunnel.tls_socket
    running.terminate()
    return [answer, again]


def loopback():
    """A program that listens on its loopback address is reached too."""
    running = sandbox("127.0.0.1", 8000, unencrypted_ports=[8000])
    tunnel = running.tunnels()[8000]
    answer = asks(socket.create_connection(tunnel.tcp_socket, timeout=30), "two")
    with_tls = asks(tls((tunnel.host, tunnel.port)), "too")
    running.terminate()
    return [answer, with_tls]


def http():
    running = modal.Sandbox.create(
        "python", "-m", "http.server", "9000", app=APP, encrypted_ports=[9000], workdir="/etc"
    )
    url = running.tunnels()[9000].url
    with urllib.request.urlopen(url + "/hostname", context=authority(), timeout=30) as answer:
        found = [answer.status, len(answer.read()) > 0]
    running.terminate()
    return found


def usual_port():
    """What takes a tunnel's host for all of its address finds it."""
    running = modal.Sandbox.create(
        "python", "-m", "http.server", "9000", app=APP, encrypted_ports=[9000]
    )
    url = f"https://{running.tunnels()[9000].host}/"
    with urllib.request.urlopen(url, context=authority(), timeout=30) as answer:
        found = answer.status
    running.terminate()
    return found


def h2():
    running = sandbox("0.0.0.0", 8000, h2_ports=[8000])
    connection = tls(running.tunnels()[8000].tls_socket, ["http/1.1", "h2"])
    protocol = connection.selected_alpn_protocol()
    answer = asks(connection, "three")
    running.terminate()
    return [protocol, answer]


def several():
    running = sandbox("0.0.0.0", 8000, encrypted_ports=[8000, 8001], unencrypted_ports=[8002])
    tunnels = running.tunnels()
    ends = {tunnel.tls_socket for tunnel in tunnels.values()}
    running.terminate()
    return [sorted(tunnels), len(ends)]


def without():
    running = modal.Sandbox.create("sleep", "60", app=APP)
    found = running.tunnels()
    running.terminate()
    return found


def ask(url, token="", data=None, **headers):
    """An answer's status and what was in it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        named["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, data, named)
    try:
        with urllib.request.urlopen(request, context=authority(), timeout=30) as answer:
            text = answer.read().decode()
            cookies = answer.headers.get_all("Set-Cookie")
            return [answer.status, json.loads(text) if text.startswith("{") else text, cookies]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode(), None]


def told(answer):
    """A header's values as the program got them."""
    return [value for name, value in answer[1]["headers"] if name == "X-Verified-User-Data"]


def websocket(url, token):
    """What an echoing WebSocket says to "hi"."""
    where = url.removeprefix("https://")
    host, _, port = where.partition(":")
    connection = tls((host, int(port or 443)))
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET /socket?_modal_connect_token={token} HTTP/1.1\r\nHost: {where}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nX-Verified-User-Data: forged\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    file = connection.makefile("rb")
    status = file.readline().split()[1].decode()
    while file.readline().strip():
        pass
    mask = b"\1\2\3\4"
    sent = bytes(byte ^ mask[at % 4] for at, byte in enumerate(b"hi"))
    connection.sendall(bytes([0x81, 0x80 | 2]) + mask + sent)
    head = file.read(2)
    text = file.read(head[1]).decode()
    connection.close()
    return [status, text]


def connect_tokens():
    running = modal.Sandbox.create("python", "-c", TELLER, "8080", "9090", app=APP)
    other = modal.Sandbox.create("sleep", "60", app=APP)
    plain = running.create_connect_token(user_metadata="somebody")
    url, token = plain.url, plain.token
    found = {"first": ask(url + "/a/b?c=d%20e&f", token)}
    found["posted"] = ask(url + "/in", token, b"some data", X_Other="x", Authorization_Not="y")
    query = f"{url}/q?x=1&_modal_connect_token={token}&y=2"
    found["query"] = ask(query, X_Verified_User_Data="forged", x_verified_user_data_2="kept")
    under = {"X_Verified_User_Data": "forged"}
    request = urllib.request.Request(url, None, {"Authorization": f"Bearer {token}", **under})
    with urllib.request.urlopen(request, context=authority(), timeout=30) as answer:
        found["underscores"] = json.loads(answer.read())["headers"]
    found["chunked"] = ask(url + "/length", token)
    found["without"] = ask(url)
    found["wrong"] = ask(url, token[:-3] + "AAA")
    found["of_another"] = ask(url, other.create_connect_token().token)
    found["websocket"] = websocket(url, token)
    if "port" in inspect.signature(running.create_connect_token).parameters:
        second = running.create_connect_token(user_metadata={"user": "ü", "n": 1}, port=9090)
        found["second"] = ask(second.url, second.token)
        found["same_url"] = second.url == url
        nobody = running.create_connect_token(port=9091)
        found["nobody_listens"] = ask(nobody.url, nobody.token)
    found["nothing_said"] = told(ask(url, running.create_connect_token().token))
    try:
        running.create_connect_token(user_metadata="a\r\nX-Other: b")
    except Exception as error:
        found["line_break"] = [type(error).__name__, str(error)]
    other.terminate()
    running.terminate()
    running.wait(raise_on_termination=False)
    for _ in range(100):  # it is closed a moment after the end is known
        try:
            found["afterwards"] = ask(url, token)[0]
            time.sleep(0.1)
        except OSError as error:
            found["afterwards"] = type(error).__name__
            break
    return found


def inbound():
    """Who may come in: this machine's loopback, and nobody from there."""
    found = []
    for allowed in (["127.0.0.0/8", "::1/128"], ["198.51.100.0/24"]):
        running = sandbox("0.0.0.0", 8000, unencrypted_ports=[8000], inbound_cidr_allowlist=allowed)
        tunnel = running.tunnels()[8000]
        door = running.create_connect_token()
        for call in (
            lambda where=tunnel.tcp_socket: asks(socket.create_connection(where, 30), "in"),
            lambda where=tunnel.tls_socket: asks(tls(where), "in"),
            lambda door=door: ask(door.url, door.token)[0],
        ):
            try:
                found.append(call() or "closed")
            except OSError:
                found.append("closed")
        running.terminate()
    return found


def inbound_mistake():
    try:
        sandbox("0.0.0.0", 8000, unencrypted_ports=[8000], inbound_cidr_allowlist=["example.com"])
    except Exception as error:
        return [type(error).__name__, str(error)]


def after_the_end():
    """The port is closed when the sandbox is gone."""
    running = sandbox("0.0.0.0", 8000, unencrypted_ports=[8000])
    where = running.tunnels()[8000].tcp_socket
    before = asks(socket.create_connection(where, timeout=30), "x")
    running.terminate()
    running.wait(raise_on_termination=False)
    for _ in range(100):
        try:
            socket.create_connection(where, timeout=30).close()
            time.sleep(0.1)
        except ConnectionRefusedError:
            return [before, "refused"]
    return [before, "open"]


@app.function()
def forwarded(protocol):
    """Answers one connection that comes through its own tunnel."""
    known = modal.Dict.from_name("conformance-tunnels", create_if_missing=True)
    server = socket.create_server(("127.0.0.1", 8000))
    with server, modal.forward(8000, unencrypted=protocol == "tcp") as tunnel:
        known[protocol] = tunnel.tcp_socket if protocol == "tcp" else tunnel.tls_socket
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as file:
            file.write(b"from the container: " + file.readline())


@app.function()
def forwarded_twice():
    with modal.forward(8000):
        try:
            with modal.forward(8000):
                return "twice"
        except Exception as error:
            return [type(error).__name__, str(error)]


@app.function()
def flash_forwarded():
    """As ``forwarded``, with the forwarding that also says again and again that its port answers."""
    known = modal.Dict.from_name("conformance-tunnels", create_if_missing=True)
    asked = threading.Event()

    def serve(server):
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rwb") as file:
                if line := file.readline():  # not just a look whether somebody listens
                    file.write(b"from the container: " + line)
                    asked.set()

    server = socket.create_server(("127.0.0.1", 8000))
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    manager = modal.experimental.flash_forward(8000)
    where = urllib.parse.urlsplit(manager.get_container_url())
    known["flash"] = [where.hostname, where.port or 443]
    asked.wait(60)
    manager.stop()
    manager.close()


def forward(protocol):
    where = modal.Dict.from_name("conformance-tunnels", create_if_missing=True)
    if protocol in where:  # of an earlier run
        where.pop(protocol)
    call = flash_forwarded.spawn() if protocol == "flash" else forwarded.spawn(protocol)
    while (found := where.get(protocol)) is None:
        time.sleep(0.1)
    found = tuple(found)
    connection = socket.create_connection(found, timeout=30) if protocol == "tcp" else tls(found)
    answer = asks(connection, "hello")
    call.get()
    return answer


def main():
    global APP
    from reporting import Report

    report = Report()
    APP = modal.App.lookup("conformance-tunnels-sandboxes", create_if_missing=True)
    report.check("prepare", without, 300.0)  # builds the image
    for call in (encrypted, loopback, http, usual_port, h2, several, without, after_the_end):
        report.check(call.__name__, call)
    if hasattr(modal.Sandbox, "create_connect_token"):
        report.check("connect_tokens", connect_tokens, 120.0)
    if "inbound_cidr_allowlist" in inspect.signature(modal.Sandbox.create).parameters:
        report.check("inbound", inbound, 120.0)
        report.check("inbound_mistake", inbound_mistake)
    with app.run():
        report.check("forward_tls", lambda: forward("tls"))
        report.check("forward_tcp", lambda: forward("tcp"))
        report.check("forward_twice", forwarded_twice.remote)
        if hasattr(modal.experimental, "flash_forward"):
            report.check("forward_flash", lambda: forward("flash"), 90.0)


if __name__ == "__main__":
    main()
