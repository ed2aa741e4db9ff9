"""Every method of NetworkFileSystem, from outside and in containers that share one live."""

import io
import os
import sys
import time
import warnings
from pathlib import Path

import modal

warnings.simplefilter("ignore")
image = modal.Image.from_registry("python:3.11-slim-bookworm")
SUFFIX = modal.__version__.replace(".", "-")
app = modal.App(f"conformance-nfs-{SUFFIX}")
shared = modal.NetworkFileSystem.from_name(f"shared-{SUFFIX}", create_if_missing=True)
PLACE = Path("/srv/shared")


@app.function(image=image, network_file_systems={str(PLACE): shared})
def put(name, text):
    (PLACE / name).parent.mkdir(parents=True, exist_ok=True)
    (PLACE / name).write_text(text)
    return sorted(str(path.relative_to(PLACE)) for path in PLACE.rglob("*"))


@app.function(image=image, network_file_systems={str(PLACE): shared})
def wait_for(name):
    """Another container's file, seen without a reload of anything."""
    deadline = time.monotonic() + 60
    while not (PLACE / name).exists():
        if time.monotonic() > deadline:
            return "never came"
        time.sleep(0.05)
    return (PLACE / name).read_text()


@app.function(image=image, network_file_systems={str(PLACE): shared})
def through_the_client():
    inside = modal.NetworkFileSystem.from_name(f"shared-{SUFFIX}")
    inside.write_file("/by-client.txt", io.BytesIO(b"from a container"))
    return (PLACE / "by-client.txt").read_text()


@app.function(image=image, network_file_systems={str(PLACE): shared})
def lead_out():
    os.symlink("/etc/hostname", PLACE / "out")
    os.symlink("../../../../../etc", PLACE / "up")
    os.symlink("/dir", PLACE / "link")


def read(path):
    return b"".join(shared.read_file(path)).decode()


def paths(path):
    return [entry.path for entry in shared.listdir(path)]


def from_outside():
    shared.write_file("/dir/a.txt", io.BytesIO(b"a"))
    shared.write_file("dir/sub/b.txt", io.BytesIO(b"bb"))
    shared.write_file("/dir/a.txt", io.BytesIO(b"a again"))
    entry = shared.listdir("/dir/a.txt")[0]
    return {
        "read": [read("/dir/a.txt"), read("dir/sub/b.txt")],
        "root": paths("/"),
        "dir": paths("/dir"),
        "iter": [item.path for item in shared.iterdir("dir/")],
        "file": [entry.path, int(entry.type), entry.size, entry.mtime > 1e9],
        "glob": paths("/dir/*.txt"),
        "deep": paths("**"),
        "deep_txt": paths("dir/**/*.txt"),
    }


def large():
    data = os.urandom(6 * 1024 * 1024)
    file = Path.home() / "large.bin"
    file.write_bytes(data)
    shared.add_local_file(file, "/large.bin")
    found = b"".join(shared.read_file("/large.bin"))
    shared.remove_file("/large.bin")
    return [len(found), found == data]


def local_directory():
    folder = Path.home() / "folder"
    (folder / "inner").mkdir(parents=True, exist_ok=True)
    (folder / "one").write_text("1")
    (folder / "inner" / "two").write_text("2")
    shared.add_local_dir(folder, "/copied")
    return paths("/copied/**")


def in_containers():
    waiting = wait_for.spawn("late.txt")
    seen = put.remote("from/container.txt", "written inside")
    put.remote("late.txt", "live")
    return [
        [name for name in seen if name.startswith(("dir", "from"))],
        read("/from/container.txt"),
        waiting.get(timeout=60),
    ]


def outside_to_inside():
    waiting = wait_for.spawn("by-upload.txt")
    shared.write_file("/by-upload.txt", io.BytesIO(b"uploaded"))
    return waiting.get(timeout=60)


def in_a_sandbox():
    box = modal.Sandbox.create(
        "sh",
        "-c",
        "cat /srv/shared/late.txt; echo by a sandbox > /srv/shared/sandbox.txt",
        app=app,
        image=image,
        network_file_systems={str(PLACE): shared},
    )
    box.wait()
    return [box.returncode, box.stdout.read(), read("/sandbox.txt")]


def links():
    lead_out.remote()
    found = {}
    for name in ("out", "up/hostname"):
        try:
            found[name] = read(name)
        except FileNotFoundError as error:
            found[name] = type(error).__name__
    return [found, read("link/a.txt")]


def remove():
    shared.remove_file("/dir/a.txt")
    shared.remove_file("/dir", recursive=True)
    return [name for name in paths("/") if name == "dir"]


def ephemeral():
    with modal.NetworkFileSystem.ephemeral() as own:
        own.write_file("x", io.BytesIO(b"y"))
        return [b"".join(own.read_file("x")).decode(), [item.path for item in own.listdir("/")]]


def empty_file():
    shared.write_file("/empty", io.BytesIO(b""))
    return read("/empty")


def volume_by_that_name():
    modal.Volume.from_name(f"volume-{SUFFIX}", create_if_missing=True).hydrate()
    modal.NetworkFileSystem.from_name(f"volume-{SUFFIX}").listdir("/")


@app.local_entrypoint()
def main():
    sys.path.insert(0, str(Path(__file__).parent))
    from reporting import Report

    check = Report().check
    check("from_outside", from_outside)
    check("large", large)
    check("empty_file", empty_file)
    check("local_directory", local_directory)
    check("in_containers", in_containers, 120)
    check("outside_to_inside", outside_to_inside, 120)
    check("through_the_client", through_the_client.remote, 120)
    check("in_a_sandbox", in_a_sandbox, 120)
    check("links", links)
    check("missing", lambda: read("/nothing"))
    check("missing_folder", lambda: paths("/nothing"))
    check("folder_as_file", lambda: read("/dir"))
    check("file_as_folder", lambda: shared.write_file("/dir/a.txt/x", io.BytesIO(b"")))
    check("folder_replaced", lambda: shared.write_file("/dir", io.BytesIO(b"")))
    check("leading_out", lambda: shared.write_file("../x", io.BytesIO(b"")))
    check("not_recursive", lambda: shared.remove_file("/dir"))
    check("remove_missing", lambda: shared.remove_file("/nothing"))
    check("remove", remove)
    check("ephemeral", ephemeral)
    check("volume_by_that_name", volume_by_that_name)
    check("unknown", lambda: modal.NetworkFileSystem.from_name("no-such").listdir("/"))
