"""Making the runtimes of a node: with nothing of an earlier one about, and as the settings say."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from homeport.node.cgroups import CgroupError
from homeport.node.isolation import ClosableRuntime, Isolation
from homeport.node.runtime.create import AUTO, check_default, create_runtime
from homeport.node.runtime.port import RuntimeUnavailableError
from homeport.node.trial import Trial, recall, sweep_trials, works

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_STRONGEST: Final = "runsc"
"""What ``auto`` looks for."""


@dataclass(frozen=True, slots=True)
class NodeRuntimes:
    """Those of the node ``node_id`` of ``home``, by its settings."""

    home: Path
    node_id: str
    runtime: str
    """Setting ``default_runtime``."""
    sandbox_runtime: str
    """Setting of that name."""
    name_servers: Sequence[str]
    prepared_max: int
    """Setting ``sandboxes_prepared_max``."""

    async def sweep(self) -> None:
        """Undo what a killed node left, and no more."""
        async with contextlib.AsyncExitStack() as stack:
            await self.default(stack)
            await self._sweep_sandboxes()

    async def default(self, stack: contextlib.AsyncExitStack) -> ClosableRuntime:
        """What isolates functions. ``stack`` closes it. Raises ``RuntimeUnavailableError``."""
        check_default(self.runtime)
        await sweep_trials(self.home)
        return await self._open(stack, self.runtime, self.home / "node" / "runtime")

    async def isolation(
        self, stack: contextlib.AsyncExitStack, default: ClosableRuntime
    ) -> Isolation:
        """With what isolates sandboxes, and a line about it in the log.

        What was named must work: raises ``RuntimeUnavailableError``.
        """
        if self.sandbox_runtime == AUTO:
            isolation = Isolation(default, is_free=True)
            stack.push_async_callback(isolation.close)
            await self._choose(isolation, default.name)
        elif self.sandbox_runtime in ("", default.name):
            await self._sweep_sandboxes()
            isolation = Isolation(default)
            log.info("sandboxes are isolated", runtime=default.name)
        else:
            name = self.sandbox_runtime
            isolation = Isolation(default, await self._open(stack, name, self._place))
            log.info("sandboxes are isolated", runtime=name)
        await asyncio.to_thread(shutil.rmtree, self.home / "node" / "tasks", True)
        return isolation

    async def _choose(self, isolation: Isolation, default: str) -> None:
        """gVisor if it works. Where nobody knows yet it is tried when the node has been linked."""
        trial = await recall(self.home, _STRONGEST)
        if trial is None or trial.failure:
            await self._sweep_sandboxes()
        if trial is None:
            isolation.choose(_STRONGEST, lambda: self._try(default))
        else:
            isolation.choose(_STRONGEST, lambda: self._decide(trial, default))
            await isolation.settled()

    async def _try(self, default: str) -> ClosableRuntime | None:
        return await self._decide(await works(self.home, _STRONGEST), default)

    async def _decide(self, trial: Trial, default: str) -> ClosableRuntime | None:
        """gVisor's runtime; ``None`` = there will be none, and the log says why."""
        if not trial.failure:
            try:
                runtime = await self._create(_STRONGEST, self._place)
            except (RuntimeUnavailableError, CgroupError, OSError) as error:
                trial = Trial(trial.subject, str(error))
            else:
                log.info("sandboxes are isolated", runtime=_STRONGEST, with_=trial.subject)
                return runtime
        if trial.subject:
            log.warning("sandboxes are isolated", runtime=default, not_runsc=trial.failure)
        else:  # as on most machines
            log.info("sandboxes are isolated", runtime=default, because=trial.failure)
        return None

    @property
    def _place(self) -> Path:
        return self.home / "node" / "runtime-sandboxes"

    async def _open(
        self, stack: contextlib.AsyncExitStack, name: str, place: Path
    ) -> ClosableRuntime:
        runtime = await self._create(name, place)
        stack.push_async_callback(runtime.close)
        return runtime

    async def _sweep_sandboxes(self) -> None:
        """Remove what sandboxes of an earlier node left that had a runtime of their own."""
        if self._place.is_dir():
            await (await self._create(self.runtime, self._place)).close()
            await asyncio.to_thread(shutil.rmtree, self._place, True)

    async def _create(self, name: str, place: Path) -> ClosableRuntime:
        runtime = await create_runtime(
            name, place, self.node_id, self.name_servers, self.prepared_max
        )
        try:
            swept = await runtime.sweep()
        except BaseException:
            await runtime.close()
            raise
        if swept:
            log.warning("left-overs of an earlier run were removed", containers=swept)
        return runtime
