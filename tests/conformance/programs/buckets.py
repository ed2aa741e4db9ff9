"""Buckets in containers: read, written, read-only, by prefix, and what cannot be mounted."""

import errno
import os
import sys
from pathlib import Path

import modal

image = modal.Image.from_registry("python:3.11-slim-bookworm")
SUFFIX = modal.__version__.replace(".", "-")
URL = os.environ.get("BUCKET_URL", "http://127.0.0.1:1")
app = modal.App(f"conformance-buckets-{SUFFIX}")
keys = modal.Secret.from_dict({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "very secret"})


def mount(name="first", **options):
    return modal.CloudBucketMount(name, bucket_endpoint_url=URL, secret=keys, **options)


@app.function(image=image, volumes={"/data": mount()})
def work():
    found = {
        "listed": sorted(os.listdir("/data")),
        "read": Path("/data/hello.txt").read_text(),
        "deep": Path("/data/deep/er/one.txt").read_text(),
        "large": len(Path("/data/large.bin").read_bytes()),
        "secrets": [name for name in os.environ if "AWS" in name],
    }
    Path(f"/data/{SUFFIX}").mkdir()
    Path(f"/data/{SUFFIX}/written.txt").write_text("written inside")
    return found


@app.function(image=image, volumes={"/data": mount()})
def write_and_die():
    file = open(f"/data/{SUFFIX}-last.bin", "wb")  # noqa: SIM115
    file.write(b"x" * (20 << 20))
    file.flush()
    os._exit(0)


@app.function(image=image, volumes={"/ro": mount(read_only=True, key_prefix="deep/")})
def read_only():
    try:
        Path("/ro/new").write_text("x")
    except OSError as error:
        return [os.listdir("/ro"), Path("/ro/er/one.txt").read_text(), errno.errorcode[error.errno]]


@app.function(image=image, volumes={"/a": mount(), "/b/c": mount("second")})
def two():
    Path(f"/b/c/{SUFFIX}.txt").write_text(Path("/a/hello.txt").read_text())
    return sorted(os.listdir("/a"))[-1]


@app.function(
    image=image,
    volumes={
        "/data": modal.CloudBucketMount(
            "first", bucket_endpoint_url=URL, secret=modal.Secret.from_dict({"OTHER": "x"})
        )
    },
)
def without_keys():
    return "started"


def in_a_sandbox():
    box = modal.Sandbox.create(
        "cat", "/data/hello.txt", app=app, image=image, volumes={"/data": mount()}
    )
    box.wait()
    return [box.returncode, box.stdout.read()]


@app.local_entrypoint()
def main():
    sys.path.insert(0, str(Path(__file__).parent))
    from reporting import Report

    check = Report().check
    check("work", work.remote, 200)
    check("read_only", read_only.remote, 120)
    check("two", two.remote, 120)
    check("in_a_sandbox", in_a_sandbox, 120)
    check("without_keys", without_keys.remote, 120)
    check("write_and_die", lambda: write_and_die.remote(), 120)
