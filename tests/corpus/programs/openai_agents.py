"""The sandbox extension of openai-agents: files, commands, a workspace that is kept and restored."""

import asyncio
import io
import json
import sys
from pathlib import Path

from agents.extensions.sandbox.modal import (
    ModalImageSelector,
    ModalSandboxClient,
    ModalSandboxClientOptions,
)


async def one(persistence):
    client = ModalSandboxClient(image=ModalImageSelector.from_tag("python:3.12-slim"))
    options = ModalSandboxClientOptions(
        "corpus-agents", sandbox_create_timeout_s=300, workspace_persistence=persistence
    )
    session = await client.create(options=options)
    try:
        await session.start()
        await session.write(Path("a.txt"), io.BytesIO(b"kept"))
        read = (await session.read(Path("a.txt"))).read()
        done = await session.exec("sh", "-c", "cat a.txt; echo err >&2; exit 5", shell=False)
        kept = await session.persist_workspace()
        await session.exec("sh", "-c", "rm a.txt", shell=False)
        await session.hydrate_workspace(kept)
        again = (await session.read(Path("a.txt"))).read()
        return [read, done.stdout, done.stderr, done.exit_code, again, await session.running()]
    finally:
        await client.delete(session)


async def main():
    found = {kind: await one(kind) for kind in sys.argv[1:]}
    print(json.dumps(found, default=lambda data: data.decode()))


asyncio.run(main())
