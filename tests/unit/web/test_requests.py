"""Clients of web functions that leave."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from homeport.calls.exchange import Exchange
from homeport.calls.model import Call, InputState
from homeport.calls.service import CallService
from homeport.web import requests


class _Calls:
    def __init__(self) -> None:
        self.released: list[Any] = []

    def release(self, call: Any) -> None:
        self.released.append(call)


class _Call:
    def __init__(self, state: InputState) -> None:
        self.inputs = {0: self}
        self.state = state


def _abandon(state: InputState) -> list[Any]:
    calls = _Calls()

    async def scenario() -> None:
        call, exchange = cast(Call, _Call(state)), Exchange()
        requests.abandon(cast(CallService, calls), call, exchange)
        assert exchange.has_news  # who waits for the answer is told

    asyncio.run(scenario())
    return calls.released


def test_request_that_nobody_waits_for_is_not_begun() -> None:
    assert len(_abandon(InputState.WAITING)) == 1


def test_application_has_a_while_to_end_by_itself() -> None:
    assert _abandon(InputState.ASSIGNED) == []
