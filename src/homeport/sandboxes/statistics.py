"""What sandboxes used and cost: of one, of an app's by tags."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from homeport.kernel.clock import Clock
from homeport.link.messages import UsageSample
from homeport.sandboxes.costs import Costs, Group, Prices, check_range, costs_of, groups_of
from homeport.sandboxes.model import SandboxRecord
from homeport.sandboxes.service import SandboxService
from homeport.sandboxes.store import SandboxStore
from homeport.sandboxes.usage import Usage, usage_between

_ASKED_AT_ONCE: Final = 50
"""Running sandboxes whose nodes are asked."""


class SandboxStatistics:
    """Adds up what nodes measured."""

    def __init__(
        self, store: SandboxStore, service: SandboxService, prices: Prices, clock: Clock
    ) -> None:
        self._store = store
        self._service = service
        self._prices = prices
        self._clock = clock

    async def of_one(self, sandbox_id: str, since: float, until: float) -> tuple[Usage, Costs]:
        """What a sandbox used between these Unix times; 0 = from its creation, till now.

        No costs where no price is set. Raises ``NotFoundError``, ``UnavailableError`` while its
        node is away.
        """
        record = await self._service.get(sandbox_id)
        usage = await self._measured(record, since, until)
        return usage, costs_of(record, usage, self._prices) if self._prices.are_set else {}

    async def of_app(
        self,
        app_id: str,
        since: float,
        until: float,
        *,
        group_by: Sequence[str],
        tags: Mapping[str, str],
    ) -> list[Group]:
        """The costs of an app's sandboxes that ran in that time and have ``tags``.

        ``since`` and ``until`` are Unix seconds on full hours, ``until`` 0 = now. Raises
        ``InvalidError`` about the range or the number of groups, ``UnavailableError`` while a node
        is away.
        """
        until = check_range(since, until, self._clock.now())
        gate = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def used(record: SandboxRecord, samples: Sequence[UsageSample]) -> Usage:
            if record.is_over:
                return usage_between(record, samples, since, until)
            async with gate:
                return await self._measured(record, since, until)

        found = await self._store.between(app_id, since, until)
        found = [each for each in found if tags.items() <= each[0].tags.items()]
        usages = await asyncio.gather(*(used(record, samples) for record, samples in found))
        costs = (
            (record, costs_of(record, usage, self._prices))
            for (record, _), usage in zip(found, usages, strict=True)
        )
        return groups_of(costs, group_by)

    async def _measured(self, record: SandboxRecord, since: float, until: float) -> Usage:
        samples = await self._service.samples(record)
        since = since or record.created_at
        return usage_between(record, samples, since, until or self._clock.now())
