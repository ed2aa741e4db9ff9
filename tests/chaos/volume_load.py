"""Uploads, removals and copies in volumes by the official client, each of which is whole or nothing.

``python volume_load.py FOLDER SEED``: goes on until FOLDER/stop exists, then writes what it saw to
FOLDER/seen.json. A worker is alone in its directory. All files of one upload have the size of the
upload's number, so one listing tells whether an upload is there as a whole.
"""

import asyncio
import hashlib
import io
import json
import random
import sys
from pathlib import Path

import modal

BROKEN = (modal.exception.Error, OSError, AttributeError)
"""What a stream ends with when the server dies: the client does not repeat those. The last one is
grpclib's, of a connection that is lost while the request is being made."""
WORKERS = 4
FILES = 6


class Worker:
    def __init__(self, load, number):
        self.load = load
        self.volume = load.volumes[number % len(load.volumes)]
        self.folder = f"worker-{number}"
        self.choice = random.Random(f"{load.seed} {number}")
        self.number = 0
        self.states = [0]
        """Sizes of the files after each change, also after one that is not acknowledged yet."""
        self.acknowledged = 0

    def content(self, file, number):
        return hashlib.sha256(f"{self.folder} {file} {number}".encode()).digest() * (
            number // 32 + 1
        )

    async def run(self):
        while not self.load.is_over:
            kind = self.choice.choice(("upload", "upload", "upload", "remove", "copy"))
            if kind == "upload" or not self.number:
                await self.upload()
            elif kind == "remove":
                await self.change(self.volume.remove_file.aio(self.folder, recursive=True), 0)
                self.number = 0
                await self.upload()
            else:
                copy = f"{self.folder}-copy"
                await self.volume.copy_files.aio([f"{self.folder}/0"], copy)
                entries = await self.entries(copy)
                self.expect("copy", [entry.size for entry in entries] == [self.number])
            await self.look()

    async def upload(self):
        number = self.number + self.choice.randrange(1, 3000)

        async def put():
            async with self.volume.batch_upload(force=True) as batch:
                for file in range(FILES):
                    data = self.content(file, number)[:number]
                    batch.put_file(io.BytesIO(data), f"{self.folder}/{file}")

        async def put_at_last():
            """The client gives a block up after some tries, if the server was dead at each."""
            while True:
                try:
                    return await put()
                except OSError:
                    await asyncio.sleep(0.1)

        await self.change(put_at_last(), number)
        self.number = number

    async def change(self, work, size):
        self.states.append(size)
        await work
        self.acknowledged = len(self.states) - 1
        self.load.changes += 1

    async def entries(self, path):
        """A listing; asked for again if the server dies while it answers."""
        while True:
            try:
                return await self.volume.listdir.aio(path)
            except modal.exception.NotFoundError:
                return []
            except BROKEN:
                await asyncio.sleep(0.1)

    async def look(self):
        """One listing is one state: the files of an upload are all there, or none of them."""
        oldest = self.acknowledged
        entries = await self.entries(f"/{self.folder}")
        sizes = {entry.size for entry in entries} or {0}
        # it may come from any moment in between, but not from before what was acknowledged
        self.expect("whole", len(sizes) == 1 and len(entries) in (0, FILES))
        self.expect("acknowledged", sizes <= set(self.states[oldest:]))

    async def last_look(self):
        await self.look()
        for file in range(FILES):
            data = b"".join(
                [part async for part in self.volume.read_file.aio(f"{self.folder}/{file}")]
            )
            self.expect("content", data == self.content(file, self.number)[: self.number])

    def expect(self, what, is_so):
        if not is_so:
            self.load.wrong.append([self.folder, what, self.number])


class Load:
    def __init__(self, folder, seed):
        self.folder = folder
        self.seed = seed
        self.changes = 0
        self.wrong = []
        self.volumes = [
            modal.Volume.from_name(f"load-{version}", create_if_missing=True, version=version)
            for version in (1, 2)
        ]

    @property
    def is_over(self):
        return (self.folder / "stop").exists()

    async def run(self):
        workers = [Worker(self, number) for number in range(WORKERS)]
        watching = asyncio.create_task(self.watch(workers))
        await asyncio.gather(*(worker.run() for worker in workers))
        await watching
        for worker in workers:
            await worker.last_look()
        return {"changes": self.changes, "wrong": self.wrong}

    async def watch(self, workers):
        """Look also while changes are on their way."""
        while not self.is_over:
            for worker in workers:
                await worker.look()
            await asyncio.sleep(0.05)


def main():
    folder, seed = Path(sys.argv[1]), sys.argv[2]
    seen = asyncio.run(Load(folder, seed).run())
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
