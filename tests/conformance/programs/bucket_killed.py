"""What a container wrote to a bucket whose node dies before it was uploaded."""

import os
import sys
import urllib.request
from pathlib import Path

import modal

image = modal.Image.from_registry("python:3.11-slim-bookworm")
URL = os.environ.get("BUCKET_URL", "http://127.0.0.1:1")
PREFIX = os.environ.get("BUCKET_PREFIX", "none")
app = modal.App("conformance-bucket-killed")
keys = modal.Secret.from_dict({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "very secret"})
bucket = modal.CloudBucketMount("first", bucket_endpoint_url=URL, secret=keys)


@app.function(image=image, volumes={"/data": bucket})
def write(prefix):
    folder = Path("/data") / prefix
    (folder / "deep").mkdir(parents=True)
    (folder / "large.bin").write_bytes(b"large" * (1 << 20))
    (folder / "deep" / "small.txt").write_text("small")
    return sorted(path.name for path in folder.iterdir())


@app.function(image=image, volumes={"/data": bucket})
def read(prefix):
    folder = Path("/data") / prefix
    whole = (folder / "large.bin").read_bytes() == b"large" * (1 << 20)
    return [whole, (folder / "deep" / "small.txt").read_text()]


@app.local_entrypoint()
def main():
    sys.path.insert(0, str(Path(__file__).parent))
    from reporting import Report

    check = Report().check
    check("write", lambda: write.remote(PREFIX), 200)
    print("all is written", flush=True)
    urllib.request.urlopen(f"{URL}/_told", timeout=200).read()
    check("read", lambda: read.remote(PREFIX), 200)
