"""Many sandboxes in use, under a server or a node that is killed.

``python sandbox_crowd.py FOLDER COUNT``: says ``all run`` when all are in the middle of something,
goes on when FOLDER/killed exists, and writes what became of each to FOLDER/seen.json.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import modal
from grpclib.client import Channel
from modal_proto import api_grpc, api_pb2

AT_ONCE = 8
END_S = 120.0
PROGRAM = "echo ready; while read line; do echo got $line; done; exit 7"
TICKS = "n=1; while [ ! -e /tmp/go ]; do echo $n; n=$((n+1)); sleep 0.2; done; echo over; exit 3"


def same(seen, expected):
    """True, or what was seen instead."""
    return True if seen == expected else {"seen": seen, "expected": expected}


async def reasons_of(ids):
    """What the server says about each end; the client keeps it to itself."""
    url = urlsplit(os.environ["MODAL_SERVER_URL"])
    metadata = {
        "x-modal-client-type": "1",
        "x-modal-client-version": modal.__version__,
        "x-modal-token-id": os.environ["MODAL_TOKEN_ID"],
        "x-modal-token-secret": os.environ["MODAL_TOKEN_SECRET"],
    }
    async with Channel(url.hostname, url.port) as channel:
        stub = api_grpc.ModalClientStub(channel)
        return [
            (
                await stub.SandboxWaitV2(
                    api_pb2.SandboxWaitRequest(sandbox_id=sandbox_id), metadata=metadata
                )
            ).result.exception
            for sandbox_id in ids
        ]


class Crowd:
    def __init__(self, folder, count):
        self.folder = folder
        self.count = count
        self.app = None
        self.image = modal.Image.debian_slim()
        self.running = 0
        self.all_run = asyncio.Event()
        self.killed = asyncio.Event()
        self.gate = asyncio.Semaphore(AT_ONCE)

    async def create(self, *command):
        async with self.gate:
            return await modal.Sandbox.create.aio(
                *command, app=self.app, image=self.image, timeout=1200
            )

    async def in_use(self):
        """It is in the middle of its work; returns when the kill has happened."""
        self.running += 1
        if self.running == self.count:
            self.all_run.set()
        await self.killed.wait()

    async def reading(self):
        """Its own output is being read."""
        sandbox = await self.create("sh", "-c", PROGRAM)
        lines = aiter(sandbox.stdout)
        first = await anext(lines)
        rest = asyncio.create_task(self.collect(lines))
        await self.in_use()
        sandbox.stdin.write(b"one\n")
        sandbox.stdin.write_eof()
        await sandbox.stdin.drain.aio()
        await sandbox.wait.aio(raise_on_termination=False)
        return same([first, await rest, sandbox.returncode], ["ready\n", ["got one\n"], 7])

    async def waiting(self):
        """Somebody waits for its end."""
        sandbox = await self.create("sh", "-c", PROGRAM)
        wait = asyncio.create_task(sandbox.wait.aio(raise_on_termination=False))
        await self.in_use()
        sandbox.stdin.write_eof()
        await sandbox.stdin.drain.aio()
        await wait
        return same([await sandbox.stdout.read.aio(), sandbox.returncode], ["ready\n", 7])

    async def executing(self):
        """A program in it goes on printing, which is being read."""
        sandbox = await self.create()
        process = await sandbox.exec.aio("sh", "-c", TICKS, bufsize=1)
        lines = aiter(process.stdout)
        first = await anext(lines)
        rest = asyncio.create_task(self.collect(lines))
        await self.in_use()
        await (await sandbox.exec.aio("touch", "/tmp/go")).wait.aio()
        code = await process.wait.aio()
        heard = [first, *await rest]
        expected = [f"{number}\n" for number in range(1, len(heard))] + ["over\n"]
        await sandbox.terminate.aio()
        await sandbox.wait.aio(raise_on_termination=False)
        return same([heard, code, sandbox.returncode], [expected, 3, 137])

    async def talking(self):
        """A program in it is written to and read from, before and after."""
        sandbox = await self.create()
        process = await sandbox.exec.aio("sh", "-c", PROGRAM, bufsize=1)
        lines = aiter(process.stdout)
        heard = [await anext(lines)]
        await self.in_use()
        process.stdin.write(b"two\n")
        await process.stdin.drain.aio()
        heard.append(await anext(lines))
        process.stdin.write_eof()
        await process.stdin.drain.aio()
        code = await process.wait.aio()
        again = await sandbox.exec.aio("echo", "again")
        heard.append(await again.stdout.read.aio())
        await sandbox.terminate.aio()
        return same([*heard, code], ["ready\n", "got two\n", "again\n", 7])

    @staticmethod
    async def collect(lines):
        return [line async for line in lines]

    async def outcome(self, number):
        kinds = (self.reading, self.waiting, self.executing, self.talking)
        kind = kinds[number % len(kinds)]
        began = time.monotonic()
        try:
            async with asyncio.timeout(END_S + 600):
                result = await kind()
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        return {"kind": kind.__name__, "result": result, "s": time.monotonic() - began}

    async def run(self):
        self.app = await modal.App.lookup.aio("sandbox-crowd", create_if_missing=True)
        await self.image.build.aio(self.app)
        work = [asyncio.create_task(self.outcome(number)) for number in range(self.count)]
        done = asyncio.gather(*work)
        await asyncio.wait(
            [done, asyncio.ensure_future(self.all_run.wait())], return_when="FIRST_COMPLETED"
        )
        ids = [
            sandbox.object_id async for sandbox in modal.Sandbox.list.aio(app_id=self.app.app_id)
        ]
        (self.folder / "running").write_text(json.dumps(ids))
        print("all run", flush=True)
        while not (self.folder / "killed").exists():
            await asyncio.sleep(0.05)
        self.killed.set()
        outcomes = await done
        ends = []
        for sandbox_id in ids:
            sandbox = await modal.Sandbox.from_id.aio(sandbox_id)
            async with asyncio.timeout(END_S):
                await sandbox.wait.aio(raise_on_termination=False)
            ends.append(sandbox.returncode)
        reasons = await reasons_of(ids)
        left = [each.object_id async for each in modal.Sandbox.list.aio(app_id=self.app.app_id)]
        new = await self.create("echo", "new")
        await new.wait.aio()
        seen = {
            "outcomes": outcomes,
            "ends": ends,
            "reasons": reasons,
            "left": left,
            "new": new.returncode,
        }
        (self.folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    asyncio.run(Crowd(Path(sys.argv[1]), int(sys.argv[2])).run())
