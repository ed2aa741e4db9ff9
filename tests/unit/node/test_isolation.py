"""Which runtime a container gets, also while it is still being found out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from homeport.kernel.errors import UnavailableError
from homeport.kernel.resources import Limits
from homeport.link.messages import StartSandbox
from homeport.node.isolation import Isolation

from .harness import function, start_task


class Named:
    """A runtime that only has a name."""

    closed = False

    def __init__(self, name: str) -> None:
        self.name = name

    async def close(self) -> None:
        self.closed = True


DEFAULT: Any = Named("bubblewrap")
GVISOR: Any = Named("runsc")


def sandbox(**more: Any) -> StartSandbox:
    return StartSandbox(
        task_id="ta-1",
        sandbox_id="sb-1",
        app_id="ap-1",
        command=["true"],
        env={},
        workdir="",
        layers=[],
        mounts=[],
        limits=Limits(),
        timeout_s=1,
        idle_timeout_s=0,
        block_network=False,
        **{"runtime": "", **more},
    )


async def name_for(isolation: Isolation, start: Any) -> str:
    return (await isolation.runtime(start)).name


def test_functions_have_the_default_one_and_sandboxes_theirs() -> None:
    async def scenario() -> None:
        isolation = Isolation(DEFAULT, GVISOR)
        assert await name_for(isolation, start_task(function("f"))) == "bubblewrap"
        assert await name_for(isolation, sandbox()) == "runsc"
        assert await name_for(Isolation(DEFAULT), sandbox()) == "bubblewrap"

    asyncio.run(scenario())


def test_what_gvisor_cannot_do_is_done_by_the_default_one_unless_gvisor_was_named() -> None:
    async def scenario() -> None:
        wants_gpu = sandbox(gpus=["GPU-1"])
        isolation = Isolation(DEFAULT, GVISOR, is_free=True)
        assert await name_for(isolation, wants_gpu) == "bubblewrap"
        assert await name_for(isolation, sandbox()) == "runsc"
        # there it is refused: see ``check_runtime``
        assert await name_for(Isolation(DEFAULT, GVISOR), wants_gpu) == "runsc"

    asyncio.run(scenario())


def test_what_has_to_be_gvisor_is_it_or_nothing() -> None:
    async def scenario() -> None:
        start = sandbox(runtime="runsc", memory_snapshots=True)
        assert await name_for(Isolation(DEFAULT, GVISOR, is_free=True), start) == "runsc"
        with pytest.raises(UnavailableError, match=r"no runtime 'runsc' \(it has: bubblewrap\)"):
            await Isolation(DEFAULT, is_free=True).runtime(start)

    asyncio.run(scenario())


class Choosing:
    """An isolation whose sandboxes' runtime is being chosen."""

    def __init__(self) -> None:
        self.verdict: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.told: list[list[str]] = []
        self.asked = 0
        self.isolation = Isolation(DEFAULT, is_free=True)
        self.isolation.disappointed = lambda: self.told.append(self.isolation.names)
        self.isolation.choose("runsc", self._wait)

    async def _wait(self) -> Any:
        self.asked += 1
        return await self.verdict


def choosing(scenario: Callable[[Choosing], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario(Choosing())

    asyncio.run(run())


@pytest.mark.parametrize("works", [True, False])
def test_sandboxes_wait_for_the_verdict_and_nothing_else_does(works: bool) -> None:
    async def scenario(choosing: Choosing) -> None:
        isolation = choosing.isolation
        assert isolation.names == ["bubblewrap", "runsc"]
        await asyncio.sleep(0)
        assert choosing.asked == 0
        waiting = [
            asyncio.ensure_future(name_for(isolation, start))
            for start in (sandbox(), sandbox(), sandbox(runtime="bubblewrap"))
        ]
        assert await name_for(isolation, start_task(function("f"))) == "bubblewrap"
        assert await name_for(isolation, sandbox(gpus=["GPU-1"])) == "bubblewrap"
        assert not any(each.done() for each in waiting)
        runsc = Named("runsc")
        choosing.verdict.set_result(runsc if works else None)
        name = "runsc" if works else "bubblewrap"
        assert await asyncio.gather(*waiting) == [name, name, "bubblewrap"]
        assert choosing.asked == 1
        assert isolation.names == sorted({"bubblewrap", name})
        assert choosing.told == ([] if works else [["bubblewrap"]])
        await isolation.close()
        assert runsc.closed is works

    choosing(scenario)


def test_a_sandbox_that_is_given_up_does_not_end_the_choice() -> None:
    async def scenario(choosing: Choosing) -> None:
        first = asyncio.ensure_future(name_for(choosing.isolation, sandbox()))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        choosing.verdict.set_result(Named("runsc"))
        assert await name_for(choosing.isolation, sandbox()) == "runsc"

    choosing(scenario)


@pytest.mark.parametrize("begun", [True, False])
def test_a_node_that_stops_does_not_wait_for_the_verdict(begun: bool) -> None:
    async def scenario(choosing: Choosing) -> None:
        if begun:
            choosing.isolation.begin()
            while not choosing.asked:
                await asyncio.sleep(0)
        await choosing.isolation.close()
        await choosing.isolation.close()
        assert choosing.verdict.cancelled() is begun

    choosing(scenario)
