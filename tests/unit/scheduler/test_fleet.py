"""Starting and stopping containers, with stand-ins for what is around."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock, MagicMock

from tests.unit.scheduler.test_placement import DEFAULTS, spec

from homeport.functions.model import FunctionRecord
from homeport.kernel.clock import SystemClock
from homeport.kernel.resources import Resources
from homeport.link.messages import StartTask, StopTask
from homeport.scheduler.board import Board
from homeport.scheduler.fleet import Fleet
from homeport.scheduler.placement import NodeView
from homeport.scheduler.pool import Pool


def test_container_that_is_stopped_before_it_is_launched() -> None:
    """It never starts: the node cannot be told to end what it does not know yet."""

    async def scenario() -> None:
        prepared = asyncio.Event()
        sent: list[Any] = []

        async def prepare(*_: object) -> MagicMock:
            await prepared.wait()
            return MagicMock(StartTask)

        nodes, reservations = MagicMock(), MagicMock()
        board = Board(SystemClock(), MagicMock(), MagicMock())
        board.step = board.room_made = MagicMock()
        nodes.send.side_effect = lambda _, message: sent.append(message) or True
        capacity = Resources(1000, 1000)
        reservations.views.return_value = [NodeView("no-1", capacity, capacity, 0)]
        reservations.defaults = DEFAULTS
        launcher = MagicMock(prepare=prepare)
        others: list[Any] = [MagicMock() for _ in range(4)]
        fleet = Fleet(
            SystemClock(),
            nodes,
            *others[:2],
            launcher,
            *others[2:3],
            board,
            others[3],
            reservations,
        )
        record = FunctionRecord(
            function_id="fu-1", app_id="ap-1", tag="f", handle=b"", created_at=0.0, spec=spec()
        )
        pool = Pool(record, 0.0)
        assert fleet.start(pool, 1) == 1
        await asyncio.sleep(0)
        (task,) = pool.tasks.values()
        fleet.stop(task, graceful=True)
        prepared.set()
        await task.gone.wait()
        assert [type(message) for message in sent] == [StopTask]
        assert not pool.tasks
        assert not board.tasks
        reservations.give_back.assert_called_once()

    asyncio.run(scenario())


def test_a_gpu_that_was_taken_away_is_told_once() -> None:
    reservations, logs = MagicMock(), MagicMock()
    capacity = Resources(1000, 1000)
    reservations.views.return_value = [NodeView("no-1", capacity, capacity, 0)]
    reservations.defaults = DEFAULTS
    others: list[Any] = [MagicMock() for _ in range(6)]
    fleet = Fleet(SystemClock(), *others[:2], logs, *others[2:], reservations)
    wanted = spec(gpu_type="T4", gpu_count=1)
    record = FunctionRecord(
        function_id="fu-1", app_id="ap-1", tag="f", handle=b"", created_at=0.0, spec=wanted
    )
    pool = Pool(record, 0.0)
    assert fleet.start(pool, 1) == fleet.start(pool, 1) == 0
    logs.system.assert_called_once()
    assert "no node has that" in logs.system.call_args.args[1]


def test_a_node_that_goes_while_a_container_is_prepared_fails_no_input() -> None:
    """However often that happens in a row: the container could not show yet whether it starts."""

    async def scenario() -> None:
        nodes, reservations, settler = MagicMock(), MagicMock(), MagicMock()
        board = Board(SystemClock(), MagicMock(), MagicMock())
        board.step, board.room_made = MagicMock(), MagicMock()
        nodes.send.return_value = False
        capacity = Resources(1000, 1000)
        reservations.views.return_value = [NodeView("no-1", capacity, capacity, 0)]
        reservations.defaults = DEFAULTS
        launcher = MagicMock()
        launcher.prepare = AsyncMock(return_value=MagicMock(StartTask))
        others: list[Any] = [MagicMock() for _ in range(4)]
        fleet = Fleet(
            SystemClock(),
            nodes,
            *others[:2],
            launcher,
            *others[2:3],
            board,
            settler,
            reservations,
        )
        record = FunctionRecord(
            function_id="fu-1", app_id="ap-1", tag="f", handle=b"", created_at=0.0, spec=spec()
        )
        pool = Pool(record, 0.0)
        pool.pop = MagicMock(side_effect=AssertionError("an input is failed"))
        for _ in range(5):
            pool.not_before = 0.0
            assert fleet.start(pool, 1) == 1
            (task,) = pool.tasks.values()
            await task.gone.wait()
            await asyncio.sleep(0)
            assert pool.start_failures == 0
            assert pool.not_before > 0
        assert board.step.call_count == 5
        assert reservations.give_back.call_count == 5

    asyncio.run(scenario())
