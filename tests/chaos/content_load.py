"""Blobs and secrets by the official client, each of which is known once it is acknowledged.

``python content_load.py FOLDER SEED``: goes on until FOLDER/stop exists, then writes what it saw
to FOLDER/seen.json. A worker is alone with its names.
"""

import asyncio
import hashlib
import io
import json
import random
import sys
from pathlib import Path

import aiohttp
import modal
from modal._utils.async_utils import synchronizer
from modal._utils.blob_utils import blob_download, blob_upload
from modal.client import _Client
from modal_proto import api_pb2

BLOB_WORKERS, SECRET_WORKERS = 3, 3
LOST = (modal.exception.Error, OSError, TimeoutError, aiohttp.ClientError)


async def _upload(data):
    return await blob_upload(data, (await _Client.from_env()).stub)


async def _download(blob_id):
    return await blob_download(blob_id, (await _Client.from_env()).stub)


async def _overwrite(name, values):
    """What ``modal secret create --force`` asks for."""
    request = api_pb2.SecretGetOrCreateRequest(
        deployment_name=name,
        object_creation_type=api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS,
        env_dict=values,
    )
    answer = await (await _Client.from_env()).stub.SecretGetOrCreate(request)
    return answer.secret_id


upload = synchronizer.create_blocking(_upload)
download = synchronizer.create_blocking(_download)
overwrite = synchronizer.create_blocking(_overwrite)


class Load:
    def __init__(self, folder, seed):
        self.folder = folder
        self.seed = seed
        self.wrong = []
        self.blobs = {}
        self.secrets = {}
        self.done = {"blob": 0, "again": 0, "create": 0, "update": 0, "overwrite": 0, "delete": 0}
        self.shared = modal.NetworkFileSystem.from_name("load", create_if_missing=True)

    @property
    def is_over(self):
        return (self.folder / "stop").exists()

    def expect(self, what, found, expected):
        if found != expected:
            self.wrong.append([what, repr(found)[:300], repr(expected)[:300]])

    async def repeated(self, call, *arguments):
        """Uploads and downloads go to the server itself, which is not there for a while."""
        while True:
            try:
                return await call(*arguments)
            except LOST as error:
                if isinstance(error, modal.exception.NotFoundError):
                    raise
                await asyncio.sleep(0.1)

    # ── blobs ───────────────────────────────────────────────────────────────────────────────

    async def with_blobs(self, number):
        choice = random.Random(f"{self.seed} blobs {number}")
        count = 0
        while not self.is_over:
            count += 1
            size = choice.choice((1, 100_000, 3_000_000, 9_000_000))
            data = hashlib.sha256(f"{number} {count}".encode()).digest() * (size // 32 + 1)
            if choice.random() < 0.3:  # its content comes as a blob, too
                await self.repeated(self.write, f"{number}", data)
                found = await self.repeated(self.read, f"{number}")
                self.expect("file", digest(found), digest(data))
            else:
                blob_id = await self.repeated(upload.aio, data)
                self.blobs[blob_id] = digest(data)
                self.done["blob"] += 1
            if self.blobs:
                blob_id = choice.choice(sorted(self.blobs))
                found = await self.repeated(download.aio, blob_id)
                self.expect(f"blob {blob_id}", digest(found), self.blobs[blob_id])
                self.done["again"] += 1

    async def write(self, path, data):
        await self.shared.write_file.aio(path, io.BytesIO(data))

    async def read(self, path):
        return b"".join([part async for part in self.shared.read_file.aio(path)])

    async def all_blobs(self):
        for blob_id, expected in self.blobs.items():
            self.expect(f"blob {blob_id}", digest(await download.aio(blob_id)), expected)

    # ── secrets ─────────────────────────────────────────────────────────────────────────────

    async def with_secrets(self, number):
        choice = random.Random(f"{self.seed} secrets {number}")
        count = 0
        while not self.is_over:
            count += 1
            name = f"worker-{number}-{choice.randrange(3)}"
            known = self.secrets.get(name)
            values = {f"KEY_{n}": f"{count} " * choice.choice((1, 1000)) for n in range(3)}
            kind = choice.choice(("create", "update", "overwrite", "overwrite", "delete"))
            if kind == "create":
                await self.create(name, values, known)
            elif kind == "overwrite":
                await overwrite.aio(name, values)
                self.secrets[name] = values
            elif known is None:
                await self.lookup_of_none(name)
                continue
            elif kind == "update":
                await modal.Secret.from_name(name).update.aio({"MORE": f"{count}"})
                self.secrets[name] = {**known, "MORE": f"{count}"}
            else:
                await modal.Secret.objects.delete.aio(name)
                del self.secrets[name]
                await self.lookup_of_none(name)
            self.done[kind] += 1
            if name in self.secrets:
                keys = sorted(self.secrets[name])
                await modal.Secret.from_name(name, required_keys=keys).hydrate.aio()

    async def create(self, name, values, known):
        try:
            await modal.Secret.objects.create.aio(name, values)
        except modal.exception.AlreadyExistsError:
            self.expect("created though it was there", known is None, False)
        else:
            self.expect("not created though it was not there", known, None)
            self.secrets[name] = values

    async def lookup_of_none(self, name):
        try:
            await modal.Secret.from_name(name).hydrate.aio()
        except modal.exception.NotFoundError:
            return
        self.wrong.append(["a deleted secret is there", name])

    # ── all ─────────────────────────────────────────────────────────────────────────────────

    async def run(self):
        await asyncio.gather(
            *(self.with_blobs(number) for number in range(BLOB_WORKERS)),
            *(self.with_secrets(number) for number in range(SECRET_WORKERS)),
        )
        await self.all_blobs()
        listed = await modal.Secret.objects.list.aio()
        self.expect("list", sorted(secret.name for secret in listed), sorted(self.secrets))
        return {"done": self.done, "wrong": self.wrong, "secrets": self.secrets}


def digest(data):
    return hashlib.sha256(data).hexdigest()


def main():
    folder, seed = Path(sys.argv[1]), sys.argv[2]
    seen = asyncio.run(Load(folder, seed).run())
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
