"""Sidecar containers of a sandbox: programs, files, ends, names, what they share."""

import modal
import modal.exception
from reporting import Report, raised, until

NAME = f"conformance-sidecars-{modal.__version__}".replace(".", "-")

app = None
image = modal.Image.debian_slim()


def sandbox(**options):
    return modal.Sandbox.create(app=app, image=image, **options)


def ok(box, script):
    process = box.exec("sh", "-c", script)
    text = process.stdout.read()
    assert process.wait() == 0, text + process.stderr.read()
    return text


def life():
    """It runs its own image beside the sandbox, is found by name, and ends when it is ended."""
    box = sandbox()
    side = box._experimental_sidecars.create(
        "sleep", "600", name="helper", image=image, env={"WORD": "given"}, workdir="/opt"
    )
    ok(side, "echo mine > /mine")
    seen = [
        side.object_id[:4],
        ok(side, "echo $WORD; pwd; cat /mine"),
        box.exec("test", "-e", "/mine").wait(),
        side.poll(),
        [one.name for one in box._experimental_sidecars.list()],
        box._experimental_sidecars.get(name="helper").object_id == side.object_id,
        raised(lambda: box._experimental_sidecars.get(name="nobody"))[0],
        raised(lambda: box._experimental_sidecars.create("true", name="helper", image=image))[0],
        raised(lambda: box._experimental_sidecars.create("true", name="bad name", image=image))[0],
    ]
    side.filesystem.write_text("text", "/from/outside")
    seen.append(ok(side, "cat /from/outside"))
    seen.append(side.terminate(wait=True))
    seen.append([one.name for one in box._experimental_sidecars.list()])
    ended = box._experimental_sidecars.list(include_terminated=True)
    seen.append([[one.name, one.poll()] for one in ended])
    again = box._experimental_sidecars.create("sh", "-c", "exit 3", name="helper", image=image)
    again.wait()
    seen.append(again.poll())
    seen.append(box.poll())
    box.terminate()
    return seen


def by_the_router():
    """The way of older clients and of sandboxes with GPUs."""
    import os

    os.environ["MODAL_USE_CONTROL_PLANE_SIDECAR_CREATE"] = "0"
    try:
        box = sandbox()
        volume = modal.Volume.from_name(NAME, create_if_missing=True)
        secret = modal.Secret.from_dict({"PASS": "word"})
        side = box._experimental_sidecars.create(
            "sleep", "600", name="old", image=image, secrets=[secret], volumes={"/data": volume}
        )
        seen = ok(side, "echo $PASS; ls -d /data/; echo kept > /data/file; sync /data")
        side.reload_volumes()
        seen += ok(side, "cat /data/file")
        box.terminate()
        return seen
    finally:
        del os.environ["MODAL_USE_CONTROL_PLANE_SIDECAR_CREATE"]


def files():
    """Its files can be made images, and images mounted, as with the sandbox itself."""
    box = sandbox()
    side = box._experimental_sidecars.create("sleep", "600", name="files", image=image)
    ok(side, "mkdir /w && echo 1 > /w/a && echo whole > /whole")
    part, whole = side.snapshot_directory("/w"), side.snapshot_filesystem()
    box.mount_image("/got", part)
    side.mount_image("/empty", modal.Image.from_scratch())
    seen = ok(box, "cat /got/a; ls -d /empty 2>/dev/null || echo none")
    side.unmount_image("/empty")
    other = modal.Sandbox.create("cat", "/whole", app=app, image=whole)
    other.wait()
    box.terminate()
    return seen + other.stdout.read()


def together():
    """They reach each other by name, whatever they may reach outside."""
    box = sandbox(block_network=True)
    serve = (
        "import http.server, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(b'from ' + sys.argv[1].encode())\n"
        "    def log_message(self, *a): pass\n"
        "http.server.ThreadingHTTPServer(('0.0.0.0', 8000), H).serve_forever()\n"
    )
    ask = (
        "import sys, time, urllib.request\n"
        "for n in range(100):\n"
        "    try:\n"
        "        print(urllib.request.urlopen('http://' + sys.argv[1] + ':8000', timeout=20).read().decode())\n"
        "        break\n"
        "    except OSError as e:\n"
        "        time.sleep(0.1)\n"
        "else: print('never', e)\n"
    )
    sidecars = box._experimental_sidecars
    db = sidecars.create(
        "python", "-c", serve, "db", name="db", image=image, outbound_cidr_allowlist=[]
    )
    web = sidecars.create("python", "-c", serve, "web", name="web", image=image)
    box.exec("python", "-c", serve, "main")

    def asked(one, name):
        process = one.exec("python", "-c", ask, name)
        return process.stdout.read().strip()

    seen = [
        asked(box, "db"),
        asked(box, "web"),
        asked(db, "main"),
        asked(web, "main"),
        asked(db, "web"),
        asked(web, "db"),
    ]
    seen.append(len(ok(box, "awk '$2 == \"00000000\"' /proc/net/route")))
    box.terminate()
    return seen


def ends_with_the_sandbox():
    box = sandbox()
    side = box._experimental_sidecars.create("sleep", "600", name="gone", image=image)
    ok(side, "true")
    box.terminate()
    box.wait(raise_on_termination=False)
    return until(lambda: raised(lambda: side.exec("true"))[0] != "nothing")


def bad():
    box = sandbox()
    side = box._experimental_sidecars.create("no-such-program", name="broken", image=image)
    side.wait()
    broken = side.poll()
    missing = raised(
        lambda: box._experimental_sidecars.create(
            "true", name="x", image=modal.Image.from_id("im-" + "0" * 22)
        )
    )[0]
    # no link of the sandbox is followed when names are written, and nothing of it stays
    ok(box, "rm /etc/hosts && ln -s /etc/passwd /etc/hosts")
    astray = box._experimental_sidecars.create("sleep", "600", name="astray", image=image)
    astray.wait()
    names = ok(box, "grep -c astray /etc/passwd || true")
    box.terminate()
    return [broken, missing, astray.poll(), names]


if __name__ == "__main__":
    report = Report()
    app = modal.App.lookup(NAME, create_if_missing=True)
    image = image.build(app)
    for check in (life, by_the_router, files, ends_with_the_sandbox, bad, together):
        report.check(check.__name__, check, 60.0)
