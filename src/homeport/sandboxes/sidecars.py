"""Sidecar containers: started beside a running sandbox, kept by its node alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from homeport.kernel import ids
from homeport.kernel.errors import InvalidError
from homeport.kernel.resources import Resources
from homeport.link.messages import Answer, Message, StartSandbox, StartSidecar
from homeport.sandboxes.model import (
    TIMEOUT_MAX_S,
    SandboxRecord,
    SandboxSpec,
    SecretRef,
    check_name,
    check_spec,
)

MAIN: Final = "main"
"""What a sandbox's own container is called."""
_PREFIX: Final = "ctr"


class Sandboxes(Protocol):
    """The sandboxes that sidecars belong to."""

    async def on_its_node(self, sandbox_id: str, when_over: str) -> SandboxRecord: ...

    def limits(self, record: SandboxRecord) -> Resources: ...

    def sealed(
        self, sandbox_id: str, sources: Sequence[str | Mapping[str, str]]
    ) -> list[SecretRef]: ...


class Launcher(Protocol):
    """Puts together what a node needs."""

    async def check(self, sandbox_id: str, spec: SandboxSpec) -> None: ...

    async def prepare(
        self, record: SandboxRecord, memory_limit_mb: int, milli_cpu: int
    ) -> StartSandbox: ...


class Nodes(Protocol):
    """The links to nodes."""

    async def ask(self, node_id: str, make: Callable[[int], Message]) -> Answer: ...


class SidecarService:
    """Starts sidecars; everything later is between the client and the node."""

    def __init__(self, sandboxes: Sandboxes, launcher: Launcher, nodes: Nodes) -> None:
        self._sandboxes = sandboxes
        self._launcher = launcher
        self._nodes = nodes

    async def create(
        self,
        sandbox_id: str,
        name: str,
        spec: SandboxSpec,
        *,
        sources: Sequence[str | Mapping[str, str]],
        bucket_credentials: Mapping[str, Mapping[str, str]],
        seed: str,
    ) -> str:
        """A sidecar of a running sandbox (by its own or its task's id): its id.

        The same for the same ``seed``. It has the sandbox's limits, for itself. Raises
        ``InvalidError``, ``NotFoundError``, ``AlreadyExistsError``, ``ConflictError`` if the
        sandbox has ended.
        """
        check_name(name)
        if name == MAIN:
            raise InvalidError(f"{MAIN!r} is the name of the sandbox's own container")
        check_spec(spec)
        if spec.block_network:
            raise InvalidError(
                "a sidecar without a network could not be reached: give it an empty list of "
                "allowed networks instead"
            )
        owner = await self._sandboxes.on_its_node(sandbox_id, "it gets no sidecars any more")
        limits = self._sandboxes.limits(owner)
        spec = msgspec.structs.replace(
            spec,
            secrets=self._sandboxes.sealed(owner.sandbox_id, sources),
            bucket_secrets={
                path: ref
                for path, values in bucket_credentials.items()
                for ref in self._sandboxes.sealed(owner.sandbox_id, [values])
            },
            milli_cpu=owner.spec.milli_cpu,
            milli_cpu_max=owner.spec.milli_cpu_max,
            timeout_s=TIMEOUT_MAX_S,
        )
        await self._launcher.check(owner.sandbox_id, spec)
        memory_mb = min(spec.memory_mb or limits.memory_mb, limits.memory_mb)
        container_id = ids.derive_ulid(_PREFIX, seed or ids.new(ids.TASK))
        record = msgspec.structs.replace(owner, task_id=container_id, spec=spec)
        start = await self._launcher.prepare(record, memory_mb, limits.milli_cpu)
        await self._nodes.ask(
            owner.node_id, lambda ask_id: StartSidecar(ask_id, owner.task_id, name, start)
        )
        return container_id
