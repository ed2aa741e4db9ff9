"""One waiting container: made, handed over, or thrown away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from homeport.kernel import ids
from homeport.link.messages import StartTask
from homeport.node.prepare import CONTROL_DIR, Prepared, Preparer, environment
from homeport.node.runtime.port import Container, ContainerSpec, ContainerStartError
from homeport.node.volumes.mounted import gate

PREFIX: Final = "tp"
"""Of the ids of waiting containers, which they keep when they are a task's."""
MEMORY_MB: Final = 48
"""About what a Python with the client takes."""
_PROGRAM: Final = "template.py"
_OWN: Final = "MODAL_TASK_ID"
"""The variable that every task has its own value of."""


class Template:
    """A container that has imported the client, or is about to.

    Its pipes are this object's until ``go``: the task reads what it printed so far.
    """

    skips_hello = False
    """Whether the client says hello no more when it is a task's."""

    def __init__(
        self, key: str, prepared: Prepared, container: Container, pipes: tuple[int, int, int]
    ) -> None:
        self.key = key
        self.prepared = prepared
        self.container = container
        self.memory_mb = MEMORY_MB
        self._stdin, self.stdout_fd, self.stderr_fd = pipes
        self.ended = asyncio.ensure_future(container.wait())
        """Done when nothing of it runs any more."""

    @property
    def is_over(self) -> bool:
        """Whether it ended without ever having been a task's."""
        return self.ended.done()

    async def hand_over(self, preparer: Preparer, start: StartTask) -> Prepared:
        """Give it what is this task's own, but for the word to go on (``go``).

        Raises as ``Preparer.prepare``, or ``ContainerStartError`` if it has ended meanwhile. What
        is returned is the caller's to discard; on an error nothing has been taken over.
        """
        prepared = await preparer.adopt(self.prepared, start)
        try:
            for overlay in prepared.volumes.overlays():
                await self.container.mount(overlay)
            if self.is_over:
                raise ContainerStartError("the container that waited has ended")
        except BaseException:
            await prepared.volumes.close()
            raise
        self.container.adopt(environment(start))
        return prepared

    def go(self, start: StartTask) -> tuple[int, int]:
        """Let it be the task's container; its stdout and stderr, the caller's from now on."""
        words = json.dumps({_OWN: start.task_id}).encode()
        with contextlib.suppress(BrokenPipeError):  # it has ended; whoever waits for it learns it
            os.write(self._stdin, words)
        os.close(self._stdin)
        return self._give_pipes()

    def _give_pipes(self) -> tuple[int, int]:
        fds = self.stdout_fd, self.stderr_fd
        self._stdin = self.stdout_fd = self.stderr_fd = -1
        return fds

    async def discard(self, preparer: Preparer) -> None:
        """Nobody needs it: end it and remove what it had."""
        await self.remove()
        await preparer.discard(self.prepared)

    async def remove(self) -> None:
        """End its container; what was prepared for it is another's to discard."""
        for fd in (self._stdin, self.stdout_fd, self.stderr_fd):
            if fd >= 0:
                os.close(fd)
        self._stdin = self.stdout_fd = self.stderr_fd = -1
        await self.container.remove()


async def make_template(key: str, start: StartTask, preparer: Preparer) -> Template:
    """A container like that of ``start``, waiting. Raises as the preparer and the runtime do."""
    own = msgspec.structs.replace(start, task_id=ids.new(PREFIX), arguments=b"", volumes=[])
    prepared = await preparer.prepare(own)
    fds: list[int] = []
    try:
        await asyncio.to_thread(_write_program, prepared.folder / "run" / _PROGRAM)
        for _ in range(3):
            fds += os.pipe()
        stdin_read, stdin_write, stdout_read, stdout_write, stderr_read, stderr_write = fds
        spec = _spec(prepared, start, own, (stdin_read, stdout_write, stderr_write))
        container = await prepared.runtime.start(spec)
    except BaseException:
        for fd in fds:
            os.close(fd)
        await preparer.discard(prepared)
        raise
    for fd in (stdin_read, stdout_write, stderr_write):
        os.close(fd)
    return Template(key, prepared, container, (stdin_write, stdout_read, stderr_read))


def _spec(
    prepared: Prepared, start: StartTask, own: StartTask, fds: tuple[int, int, int]
) -> ContainerSpec:
    stdin, stdout, stderr = fds
    spec = prepared.spec(own, stdout, stderr)
    env = {name: value for name, value in spec.env.items() if name != _OWN}
    gates = tuple(gate(prepared.folder / "volumes", ref) for ref in start.volumes)
    return replace(
        spec,
        command=(start.command[0], f"{CONTROL_DIR}/{_PROGRAM}"),
        env=env,
        binds=(*spec.binds, *gates),
        stdin_fd=stdin,
    )


@cache
def _program() -> bytes:
    return Path(__file__).with_name("program.py").read_bytes()


def _write_program(path: Path) -> None:
    path.write_bytes(_program())
    path.chmod(0o644)
