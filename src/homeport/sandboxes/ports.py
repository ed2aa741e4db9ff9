"""What more than one kind of sandbox needs of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from homeport.sandboxes.model import SandboxRecord, SandboxSpec

Source = str | Mapping[str, str]
"""A secret's id, or variables themselves."""


class Creation(Protocol):
    """The sandboxes, as who makes a further one of another sees them."""

    async def create(
        self,
        app_id: str,
        spec: SandboxSpec,
        *,
        name: str,
        tags: dict[str, str],
        sources: Sequence[Source],
        bucket_credentials: Mapping[str, Mapping[str, str]],
        is_v2: bool,
        seed: str,
        is_repeat: bool,
    ) -> SandboxRecord: ...

    async def find(self, sandbox_id: str) -> SandboxRecord | None: ...


class Snapshots(Protocol):
    """Images that are a sandbox's files, or its memory."""

    async def add(
        self,
        image_id: str,
        *,
        made_on: str,
        base_id: str,
        layers: Sequence[str],
        node_id: str,
        sandbox_id: str,
        app_id: str,
        ttl_s: float,
        what: str = ...,
    ) -> None: ...
