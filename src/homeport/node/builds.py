"""Image builds as the server asks for them: started, logged, cancelled, reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from homeport.kernel.errors import HomeportError
from homeport.link.messages import (
    BuildFinished,
    BuildImage,
    BuildLog,
    ImageConfig,
    LogEntry,
    Message,
)
from homeport.node.builder.builder import BuildOutcome
from homeport.node.builder.errors import BuildError
from homeport.node.runtime.port import ContainerStartError, RuntimeUnavailableError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Builder(Protocol):
    """``ImageBuilder``, as this module uses it."""

    async def build(
        self, message: BuildImage, on_log: Callable[[list[LogEntry]], None]
    ) -> BuildOutcome: ...


class BuildReporter(Protocol):
    """The link, as builds use it."""

    def send(self, message: Message) -> bool: ...

    def send_sure(self, message: BuildFinished) -> None: ...


class NodeBuilds:
    """The builds under way on this node."""

    def __init__(self, builder: Builder, link: BuildReporter) -> None:
        self._builder = builder
        self._link = link
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, message: BuildImage) -> None:
        """Build ``message`` in the background and report its end."""
        if message.build_id in self._running:
            return
        task = asyncio.create_task(self._run(message), name=message.build_id)
        self._running[message.build_id] = task
        task.add_done_callback(lambda _: self._running.pop(message.build_id, None))

    def cancel(self, build_id: str) -> None:
        """Stop a build; it reports its end."""
        task = self._running.get(build_id)
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        """Cancel all builds and wait until nothing of them is left."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _run(self, message: BuildImage) -> None:
        build_id = message.build_id

        def on_log(entries: list[LogEntry]) -> None:
            self._link.send(BuildLog(build_id, entries))

        try:
            outcome = await self._builder.build(message, on_log)
        except asyncio.CancelledError:
            self._failed(build_id, "the build was cancelled")
        except (BuildError, HomeportError) as error:
            self._failed(build_id, error.message)
        except (ContainerStartError, RuntimeUnavailableError, OSError) as error:
            self._failed(build_id, str(error) or type(error).__name__)
        except Exception as error:
            log.exception("an image build failed in the node", build_id=build_id)
            self._failed(build_id, f"the node failed to build the image: {error!r}")
        else:
            self._link.send_sure(
                BuildFinished(
                    seq=0,
                    build_id=build_id,
                    error="",
                    layers=outcome.layers,
                    config=outcome.config,
                    python_version=outcome.python_version,
                    libc_version=outcome.libc_version,
                )
            )

    def _failed(self, build_id: str, error: str) -> None:
        self._link.send_sure(BuildFinished(0, build_id, error, [], ImageConfig(), ""))
