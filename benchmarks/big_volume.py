"""A million files in one volume, and one file of 20 GB: how long everything takes, and the memory.

    python benchmarks/big_volume.py [--files 1000000] [--gib 20]

By hand, not in the test suite. The files are put by the client's RPC, ten thousand a call, with a
thousand different contents; the one file has a random MiB at the beginning of each block, so that
it takes an eighth of its size on the disk. ``most memory`` is the server's so far.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

MIB = 2**20
BLOCK_BYTES = 8 * MIB
AT_ONCE = 10_000
CONTENTS = 1_000


class Measured:
    """A server without a node, and what is done with it."""

    def __init__(self, home: Path, pid: int) -> None:
        self.home = home
        self.pid = pid
        known = tomllib.loads((home / "credentials.toml").read_text())
        self.url, self.node_token = known["server_url"], known["node_token"]
        os.environ["MODAL_SERVER_URL"] = self.url
        os.environ["MODAL_TOKEN_ID"] = known["token_id"]
        os.environ["MODAL_TOKEN_SECRET"] = known["token_secret"]
        os.environ["MODAL_CONFIG_PATH"] = str(home / "none.toml")

    def most_memory_mib(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) // 1024
        raise AssertionError("the server has ended")

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print how long it took, and the most memory that the server had."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        print(f"{name:44}{seconds:10.1f} s{self.most_memory_mib():10} MiB most memory", flush=True)

    def node_changes(self) -> int:
        """Bytes that a node is sent which mounts the volume anew."""
        import modal

        volume_id = modal.Volume.from_name("many").hydrate().object_id
        request = urllib.request.Request(
            f"{self.url}/_node/volumes/{volume_id}/changes?since=0",
            headers={"Authorization": f"Bearer {self.node_token}"},
        )
        count = 0
        with urllib.request.urlopen(request) as answer:
            while part := answer.read(MIB):
                count += len(part)
        return count


def many(server: Measured, count: int) -> None:
    import modal
    from modal._utils.async_utils import synchronizer
    from modal.client import _Client
    from modal_proto import api_pb2

    contents = [b"content %d" % number for number in range(CONTENTS)]
    volume = modal.Volume.from_name("many", create_if_missing=True, version=2).hydrate()
    with volume.batch_upload() as batch:
        folder = Path(tempfile.mkdtemp(dir=server.home))
        for number, content in enumerate(contents):
            (folder / f"{number}").write_bytes(content)
        batch.put_directory(folder, "/contents")
    hashes = [hashlib.sha256(content).digest() for content in contents]
    warnings.filterwarnings("ignore", message=".*internal gRPC API.*")  # which is used on purpose

    async def put(first: int) -> None:
        request = api_pb2.VolumePutFiles2Request(volume_id=volume.object_id)
        for number in range(first, min(first + AT_ONCE, count)):
            which = number % CONTENTS
            path = f"many/{number // 1000:04}/{number % 1000:04}.txt"
            file = request.files.add(path=path, size=len(contents[which]), mode=0o644)
            file.blocks.add(contents_sha256=hashes[which])
        answer = await (await _Client.from_env()).stub.VolumePutFiles2(request)
        assert not answer.missing_blocks

    put_some = synchronizer.create_blocking(put)
    with server.step(f"put {count:,} files"):
        for first in range(0, count, AT_ONCE):
            put_some(first)
    with server.step("list one directory of 1,000"):
        assert len(volume.listdir("/many/0007")) == 1000
    with server.step("list everything"):
        found = sum(1 for _ in volume.iterdir("/many", recursive=True))
        assert found == count + (count + 999) // 1000, found
    with server.step("read 100 files"):
        for number in range(0, count, count // 100):
            path = f"many/{number // 1000:04}/{number % 1000:04}.txt"
            assert b"".join(volume.read_file(path)) == contents[number % CONTENTS]
    with server.step("what a node is sent (reload of everything)"):
        size = server.node_changes()
    print(f"{'':44}{size / MIB:10.0f} MiB sent")
    with server.step("put one more file"):
        asyncio.run(one_more(volume))
    with server.step("homeport volume fsck"):
        command = [sys.executable, "-m", "homeport.volumes.fsck", str(server.home)]
        done = subprocess.run(command, capture_output=True, check=True)
        report = json.loads(done.stdout)
        assert report["damages"] == []
        assert report["files"] == count + CONTENTS + 1
    with server.step("remove a directory of 1,000"):
        volume.remove_file("/many/0003", recursive=True)
    with server.step("remove everything"):
        volume.remove_file("/many", recursive=True)
    with server.step("delete the volume"):
        modal.Volume.objects.delete("many")


async def one_more(volume: object) -> None:
    import io

    async with volume.batch_upload() as batch:  # type: ignore[attr-defined]
        batch.put_file(io.BytesIO(b"one more"), "/more")


def large(server: Measured, gib: int) -> None:
    import modal

    volume = modal.Volume.from_name("large", create_if_missing=True, version=2).hydrate()
    source = server.home / "source"
    with source.open("wb") as file:
        for block in range(gib * 1024 * MIB // BLOCK_BYTES):
            file.seek(block * BLOCK_BYTES)
            file.write(os.urandom(MIB))
        file.truncate(gib * 1024 * MIB)
    with server.step(f"upload {gib} GiB"), volume.batch_upload() as batch:
        batch.put_file(source, "/large")
    digest = hashlib.sha256()
    with server.step(f"download {gib} GiB"):
        for part in volume.read_file("/large"):
            digest.update(part)
    with source.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
    source.unlink()
    with server.step("delete the volume"):
        modal.Volume.objects.delete("large")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--gib", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        command = [sys.executable, "-m", "homeport.main", "serve", "--home", home, "--port", "0"]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not (home / "run" / "server.json").exists():
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.05)
            server = Measured(home, process.pid)
            if options.files:
                many(server, options.files)
            if options.gib:
                large(server, options.gib)
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
