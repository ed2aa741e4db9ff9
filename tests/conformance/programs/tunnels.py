"""Tunnels: into sandboxes with TLS, HTTP/2 and raw TCP, and from function containers."""

import socket
import ssl
import sys
import time
import urllib.request

import modal

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


def forward(protocol):
    where = modal.Dict.from_name("conformance-tunnels", create_if_missing=True)
    if protocol in where:  # of an earlier run
        where.pop(protocol)
    call = forwarded.spawn(protocol)
    while (found := where.get(protocol)) is None:
        time.sleep(0.1)
    found = tuple(found)
    connection = tls(found) if protocol == "tls" else socket.create_connection(found, timeout=30)
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
    with app.run():
        report.check("forward_tls", lambda: forward("tls"))
        report.check("forward_tcp", lambda: forward("tcp"))
        report.check("forward_twice", forwarded_twice.remote)


if __name__ == "__main__":
    main()
