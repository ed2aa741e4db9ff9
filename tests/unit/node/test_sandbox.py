"""What a node promises about a sandbox before and after its server knows of the start."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import pytest
from tests.unit.node.harness import Node

from homeport.kernel.errors import NotFoundError
from homeport.link.messages import (
    Limits,
    SandboxStarted,
    StartSandbox,
    StopTask,
    TaskExited,
)
from homeport.node.sandbox import Sandbox

START = StartSandbox(
    "ta-1", "sb-1", "ap-1", ["cat"], [], [], {}, "", Limits(), "", 60.0, 0.0, block_network=True
)


@contextlib.asynccontextmanager
async def unrecorded() -> AsyncGenerator[tuple[Node, Sandbox]]:
    """A running sandbox of whose start the server has not taken note yet."""
    with tempfile.TemporaryDirectory(prefix="node-") as folder:
        async with Node(Path(folder)) as node:
            node.server.acknowledges = False
            node.server.send(START)
            await node.server.first(SandboxStarted)
            yield node, cast("Sandbox", node.supervisor.find("ta-1"))
            node.server.acknowledges = True
            await restart(node)


async def restart(node: Node) -> None:
    before = len(node.server.hellos)
    await node.server.stop()
    await node.server.start()
    await node.server.until(lambda: len(node.server.hellos) > before)


@pytest.mark.parametrize("use", ["a program", "its input"])
def test_nobody_uses_a_sandbox_whose_start_is_not_recorded(use: str) -> None:
    """A server that does not know of the start starts it again: what was done would be gone."""

    async def scenario() -> None:
        async with unrecorded() as (node, sandbox):
            if use == "a program":
                using = asyncio.create_task(sandbox.started())
            else:
                using = asyncio.create_task(sandbox.write_stdin(0, b"text", eof=False))
            # Long enough for everything that is under way without the server.
            done, _ = await asyncio.wait([using], timeout=0.2)
            assert not done
            node.server.acknowledges = True
            await restart(node)
            await using
            node.server.acknowledges = False
            await sandbox.started()

    asyncio.run(scenario())


def test_who_waited_hears_of_the_end() -> None:
    async def scenario() -> None:
        async with unrecorded() as (node, sandbox):
            using = asyncio.create_task(sandbox.started())
            node.server.send(StopTask("ta-1", True, 0.0))
            await node.server.first(TaskExited)
            assert not using.done()
            node.server.acknowledges = True
            await restart(node)
            with pytest.raises(NotFoundError):
                await using

    asyncio.run(scenario())
