"""What a sandbox with a list of domains reaches, and all the ways round the list that fail.

Argument: the network (three numbers of an address) of the suite's own internet.
"""

import inspect
import json
import sys

import modal
from reporting import Report, raised

NET = sys.argv[1]
PROBE = r"""
import errno, json, socket, ssl, struct, sys

NET = sys.argv[1]
LISTED, OTHER = NET + ".2", NET + ".3"
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TLS.check_hostname, TLS.verify_mode = False, ssl.CERT_NONE

def outcome(call, *arguments):
    try:
        return call(*arguments)
    except ssl.SSLError as error:
        return "TLS: " + str(error.reason)
    except OSError as error:
        return errno.errorcode.get(error.errno) or type(error).__name__

def tls(address, name, port=443):
    with socket.create_connection((address, port), timeout=10) as plain:
        with TLS.wrap_socket(plain, server_hostname=name) as secure:
            return secure.recv(200).decode().strip()

def by_name(name):
    return tls(name, name)

def plain(address, port, data=b"GET / HTTP/1.0\r\nHost: listed.example\r\n\r\n"):
    with socket.create_connection((address, port), timeout=5) as connection:
        connection.sendall(data)
        return repr(connection.recv(100))

def resolve(name):
    return socket.gethostbyname(name)

def question(name, kind):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", 77, 256, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)

def ask(server, port, name, kind=1):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(3)
        one.connect((server, port))
        one.send(question(name, kind))
        data = one.recv(4096)
        return ["code", data[3] & 15, "answers", struct.unpack_from(">H", data, 6)[0]]

def ask_by_tcp(server, name):
    with socket.create_connection((server, 53), timeout=3) as one:
        data = question(name, 1)
        one.sendall(struct.pack(">H", len(data)) + data)
        data = one.recv(4096)[2:]
        return ["code", data[3] & 15, "answers", struct.unpack_from(">H", data, 6)[0]]

def six(address, port):
    with socket.socket(socket.AF_INET6) as one:
        one.settimeout(5)
        one.connect((address, port))
        return "open"

def ping(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as one:
        one.settimeout(3)
        one.sendto(struct.pack(">BBHHH", 8, 0, 0xF7FE, 1, 0), (address, 0))
        return repr(one.recv(100))

def forged(source):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as one:
        data = question("secret.tunnel.example", 1)
        udp = struct.pack(">HHHH", 4000, 53, 8 + len(data), 0) + data
        head = struct.pack(">BBHHHBBH4s4s", 69, 0, 20 + len(udp), 1, 0, 64, 17, 0,
                           socket.inet_aton(source), socket.inet_aton(OTHER))
        one.sendto(head + udp, (OTHER, 0))
        return "sent"

ways = json.loads(sys.argv[2])
print(json.dumps({name: outcome(globals()[way[0]], *way[1:]) for name, way in ways.items()}))
"""
# A connection that stays: says what it hears when its input has a line.
STAYING = r"""
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
plain = socket.create_connection((sys.argv[1], 443), timeout=20)
secure = context.wrap_socket(plain, server_hostname=sys.argv[1]).makefile("rwb")
print(secure.readline().decode().strip(), flush=True)
for line in sys.stdin:
    try:
        secure.write(line.encode())
        secure.flush()
        print(secure.readline().decode().strip() or "cut", flush=True)
    except OSError:
        print("cut", flush=True)
"""
LISTED, OTHER = f"{NET}.2", f"{NET}.3"
WAYS = {
    "listed": ["by_name", "listed.example"],
    "listed_upper": ["tls", "LISTED.example", "LISTED.Example"],
    "wildcard": ["by_name", "a.b.wild.example"],
    "above_wildcard": ["by_name", "wild.example"],
    "beside_wildcard": ["by_name", "evilwild.example"],
    "not_listed": ["resolve", "other.example"],
    "address_of_listed": ["tls", LISTED, None],
    "address_of_other": ["tls", OTHER, None],
    "other_name_at_listed": ["tls", LISTED, "other.example"],
    "listed_name_at_other": ["tls", OTHER, "listed.example"],
    "longer_name": ["tls", LISTED, "listed.example.other.example"],
    "no_tls": ["plain", LISTED, 443],
    "http": ["plain", LISTED, 80],
    "other_port": ["tls", LISTED, "listed.example", 8443],
    "names_elsewhere": ["ask", OTHER, 53, "secret.tunnel.example"],
    "names_by_tcp": ["ask_by_tcp", OTHER, "secret.tunnel.example"],
    "names_at_other_port": ["ask", OTHER, 5353, "secret.tunnel.example"],
    "names_over_tls": ["plain", OTHER, 853],
    "names_over_https": ["tls", OTHER, "dns.example"],
    "text_record": ["ask", OTHER, 53, "secret.wild.example", 16],
    "listed_record": ["ask", OTHER, 53, "listed.example"],
    "quic": ["ask", LISTED, 443, "listed.example"],
    "six": ["six", "2001:db8::1", 443],
    "six_mapped": ["six", f"::ffff:{OTHER}", 80],
    "ping": ["ping", OTHER],
    "forged": ["forged", "10.87.0.9"],
    "to_loopback": ["tls", LISTED, "loopback.wild.example"],
    "to_metadata": ["tls", LISTED, "metadata.wild.example"],
    "to_node": ["tls", LISTED, "node.wild.example"],
    "to_containers": ["tls", LISTED, "containers.wild.example"],
}
DOMAINS = ["listed.example", "*.wild.example"]
app = None
image = modal.Image.debian_slim()


def create(*command, **options):
    return modal.Sandbox.create(*command, app=app, image=image, **options)


def probe(sandbox, ways):
    process = sandbox.exec("python", "-c", PROBE, NET, json.dumps(ways))
    text = process.stdout.read()
    assert process.wait() == 0, process.stderr.read()
    return json.loads(text)


def ways_out():
    sandbox = create("sleep", "300", outbound_domain_allowlist=DOMAINS)
    found = probe(sandbox, WAYS)
    sandbox.terminate()
    return found


def with_networks():
    """Both lists at once: each adds to the other."""
    sandbox = create(
        "sleep",
        "300",
        outbound_domain_allowlist=["listed.example"],
        outbound_cidr_allowlist=[f"{OTHER}/32"],
    )
    names = ("listed", "http", "address_of_listed", "address_of_other", "names_over_tls")
    found = probe(sandbox, {name: WAYS[name] for name in names})
    sandbox.terminate()
    return found


def every_domain():
    sandbox = create("sleep", "300", outbound_domain_allowlist=["*"])
    names = ("listed", "address_of_other", "http", "to_metadata", "to_node")
    ways = {name: WAYS[name] for name in names} | {"other": ["by_name", "other.example"]}
    found = probe(sandbox, ways)
    sandbox.terminate()
    return found


def no_domain():
    sandbox = create("sleep", "300", outbound_domain_allowlist=[])
    found = probe(sandbox, {"listed": WAYS["listed"], "address": WAYS["address_of_listed"]})
    sandbox.terminate()
    return found


def changed():
    """Lists that change while it runs: what is not allowed any more is cut."""
    sandbox = create("sleep", "300", outbound_domain_allowlist=["listed.example"])
    change = sandbox._experimental_set_outbound_network_policy
    staying = sandbox.exec("python", "-uc", STAYING, "listed.example", bufsize=1)
    lines = iter(staying.stdout)
    heard = [next(lines)]

    def hear(word):
        staying.stdin.write(word + "\n")
        staying.stdin.drain()
        heard.append(next(lines))

    ways = {
        "listed": WAYS["listed"],
        "other": ["by_name", "other.example"],
        "address": ["plain", OTHER, 80],
    }
    hear("one")
    seen = [probe(sandbox, ways)]
    change(outbound_domain_allowlist=["listed.example", "other.example"])
    hear("two")
    seen.append(probe(sandbox, ways))
    change(outbound_domain_allowlist=["other.example"])
    hear("three")
    seen.append(probe(sandbox, ways))
    change(outbound_cidr_allowlist=[f"{OTHER}/32"])
    seen.append(probe(sandbox, ways))
    change()
    seen.append(probe(sandbox, ways))
    sandbox.terminate()
    return [[line.strip() for line in heard], seen]


def mistakes():
    bad = ["10.0.0.1", "https://listed.example", "a.*.example", "", "*.", "a b.example"]
    return [raised(lambda text=text: create(outbound_domain_allowlist=[text])) for text in bad]


def main():
    global app
    assert "outbound_domain_allowlist" in inspect.signature(modal.Sandbox.create).parameters
    report = Report()
    app = modal.App.lookup("conformance-egress", create_if_missing=True)
    report.check("prepare", lambda: create("true").wait(), 300.0)
    for call in (ways_out, with_networks, every_domain, no_domain, changed, mistakes):
        report.check(call.__name__, call, 120.0)


if __name__ == "__main__":
    main()
