"""Sign-ins: who starts one gets a token when the owner approves it, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.rpc.rpc_harness import FakeClock, database

from homeport.kernel.errors import ExhaustedError, InvalidError, NotFoundError
from homeport.storage.operations import OperationLog
from homeport.workspace.flows import COUNT_MAX, LIFETIME_S, TokenFlows
from homeport.workspace.tokens import Tokens


def run(path: Path, scenario: Callable[[TokenFlows, Tokens, FakeClock], Awaitable[None]]) -> None:
    async def main() -> None:
        async with database(path) as opened:
            clock = FakeClock()
            tokens = Tokens(opened, clock, OperationLog(opened, clock))
            await tokens.start()
            await scenario(TokenFlows(tokens, clock), tokens, clock)

    asyncio.run(main())


def test_an_approved_sign_in_has_a_token_that_works(tmp_path: Path) -> None:
    async def scenario(flows: TokenFlows, tokens: Tokens, _clock: FakeClock) -> None:
        flow, other = flows.begin("tf-1"), flows.begin("tf-2")
        assert flows.begin("tf-1") is flow  # the client repeats its call
        waiting = asyncio.create_task(flows.wait("tf-1", flow.wait_secret, 30))
        await asyncio.sleep(0)
        token_id = await flows.approve(f" {flow.code.lower().replace('-', '')} ")
        found = await waiting
        assert found is not None
        assert found[0] == token_id
        assert tokens.verify(*found)
        assert await flows.wait("tf-1", flow.wait_secret, 0) == found  # its answer was lost
        assert await flows.wait("tf-2", other.wait_secret, 0) is None
        with pytest.raises(NotFoundError):
            await flows.approve(flow.code)
        assert len(tokens.list()) == 1

    run(tmp_path, scenario)


def test_others_get_nothing(tmp_path: Path) -> None:
    async def scenario(flows: TokenFlows, tokens: Tokens, clock: FakeClock) -> None:
        flow = flows.begin("tf-1")
        for flow_id, secret in (("tf-1", "guessed"), ("tf-x", flow.wait_secret)):
            with pytest.raises(NotFoundError):
                await flows.wait(flow_id, secret, 0)
        with pytest.raises(NotFoundError):
            await flows.approve("WRONG")
        clock.time += LIFETIME_S + 1
        with pytest.raises(NotFoundError):
            await flows.approve(flow.code)
        assert tokens.list() == []

    run(tmp_path, scenario)


def test_bounds(tmp_path: Path) -> None:
    async def scenario(flows: TokenFlows, _tokens: Tokens, clock: FakeClock) -> None:
        with pytest.raises(InvalidError, match="do not expire"):
            flows.begin("tf-x", lifetime_s=3600)
        for number in range(COUNT_MAX):
            flows.begin(f"tf-{number}")
        with pytest.raises(ExhaustedError):
            flows.begin("tf-more")
        clock.time += LIFETIME_S + 1
        flows.begin("tf-more")

    run(tmp_path, scenario)
