"""Containers that write into volumes and commit, each of them alone in its directory.

``python commit_load.py FOLDER SEED``: goes on until FOLDER/stop exists, then writes what it saw to
FOLDER/seen.json. All files of one commit have the number of the commit inside.
"""

import asyncio
import json
import random
import sys
from pathlib import Path

import modal

STREAM_BROKEN = (
    modal.exception.ServiceError,
    modal.exception.ConnectionError,
    OSError,
    AttributeError,  # grpclib's, of a connection that is lost while the request is being made
)
FILES = 5
VOLUMES = {
    version: modal.Volume.from_name(f"commit-{version}", create_if_missing=True, version=version)
    for version in (1, 2)
}
app = modal.App("commits")


@app.function(volumes={f"/{n}": volume for n, volume in VOLUMES.items()}, max_containers=2)
@modal.concurrent(max_inputs=4)
def keep(version, folder, number, size, commits):
    """Write ``commits`` times, commit each; the number of the last one."""
    place = Path(f"/{version}/{folder}")
    place.mkdir(exist_ok=True)
    for one in range(number, number + commits):
        for file in range(FILES):
            (place / f"{file}").write_bytes(b"%d " % one * size)
        (place / f"only-{one}").write_bytes(b"%d" % one)
        (place / f"only-{one - 1}").unlink(missing_ok=True)
        VOLUMES[version].commit()
    return number + commits - 1


class Load:
    def __init__(self, folder, seed):
        self.folder = folder
        self.seed = seed
        self.commits = 0
        self.wrong = []

    @property
    def is_over(self):
        return (self.folder / "stop").exists()

    async def work(self, worker):
        choice = random.Random(f"{self.seed} {worker}")
        version, folder, number = worker % 2 + 1, f"worker-{worker}", 1
        keep = modal.Function.from_name("commits", "keep")
        while not self.is_over:
            size, commits = choice.choice((1, 1000, 300_000)), choice.choice((1, 1, 3))
            number = await keep.remote.aio(version, folder, number, size, commits)
            self.commits += commits
            await self.look(VOLUMES[version], folder, number, size)
            number += 1

    async def look(self, volume, folder, number, size):
        """It is all there once it is acknowledged, and nothing that was removed."""
        expected = {f"{folder}/{file}": b"%d " % number * size for file in range(FILES)}
        expected[f"{folder}/only-{number}"] = b"%d" % number
        found = await self.listed(volume, folder)
        if found != {path: len(data) for path, data in expected.items()}:
            self.wrong.append([folder, number, found])
        for path, data in expected.items():
            if await self.content(volume, path) != data:
                self.wrong.append([path, number, "another content"])

    async def listed(self, volume, folder):
        while True:
            try:
                return {entry.path: entry.size for entry in await volume.listdir.aio(folder)}
            except STREAM_BROKEN:
                await asyncio.sleep(0.1)

    async def content(self, volume, path):
        while True:
            try:
                return b"".join([part async for part in volume.read_file.aio(path)])
            except FileNotFoundError:
                return None
            except (modal.exception.Error, OSError, AttributeError):
                await asyncio.sleep(0.1)

    async def run(self):
        await asyncio.gather(*(self.work(worker) for worker in range(4)))
        return {"commits": self.commits, "wrong": self.wrong}


def main():
    folder, seed = Path(sys.argv[1]), sys.argv[2]
    app.deploy(name="commits")
    modal.Function.from_name("commits", "keep").remote(1, "first", 1, 1, 1)
    (folder / "begun").touch()
    seen = asyncio.run(Load(folder, seed).run())
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
