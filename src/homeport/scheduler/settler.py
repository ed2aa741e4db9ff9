"""What becomes of inputs: queued, run again, or finished without a container's word."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from homeport.calls.model import Input, InputState, Output
from homeport.calls.service import CallService, terminated
from homeport.functions.service import FunctionService
from homeport.kernel.clock import Clock
from homeport.link.messages import (
    STATUS_FAILURE,
    Result,
)
from homeport.nodes.service import Durable
from homeport.scheduler.attempts import Decision, Verdict
from homeport.scheduler.board import Board
from homeport.scheduler.pool import Pool

_UNREPEATABLE = Result(STATUS_FAILURE, exception="The container ended in the middle of its answer")


class Settler:
    """Carries out what was decided about inputs."""

    def __init__(
        self, clock: Clock, functions: FunctionService, calls: CallService, board: Board
    ) -> None:
        self._clock = clock
        self._functions = functions
        self._calls = calls
        self._board = board

    def enqueue(self, inputs: Sequence[Input]) -> None:
        pools: dict[str, Pool] = {}
        for item in inputs:
            record = self._functions.find(item.call.function_id)
            if record is None or record.spec is None:
                self.finish(item, Result(STATUS_FAILURE, exception="The function is gone"))
                continue
            pool = self._board.pool(record)
            if not self._board.may_run(record):
                self._calls.finish([(item, terminated(item, self._clock.now(), "App stopped"))])
                continue
            if item.call.lease is not None:
                if not pool.waiting:
                    pool.progress_at = self._clock.monotonic()
                self._board.lease(pool, item)
                continue
            if not pool.waiting:
                pool.progress_at = self._clock.monotonic()
            pool.push([item])
            pools[pool.record.function_id] = pool
        for pool in pools.values():
            self._board.step(pool)

    def settle(self, item: Input, decision: Decision) -> None:
        """Carry out what was decided about an input whose attempt ended."""
        if decision.verdict is Verdict.FINISH:
            assert decision.result is not None
            self.finish(item, decision.result)
        elif decision.verdict is Verdict.REQUEUE:
            self.requeue(item, decision.otherwise)
        elif not _repeatable(item):
            self.finish(item, decision.otherwise or _UNREPEATABLE)
        else:
            item.user_retries += 1
            item.attempt += 1
            item.started_at = 0.0
            item.state = InputState.WAITING
            item.task_id = ""
            pool = self._board.pools.get(item.call.function_id)
            if pool is not None:
                pool.delayed += 1
            asyncio.get_running_loop().call_later(decision.delay_s, self._retry, item, pool)

    def _retry(self, item: Input, pool: Pool | None) -> None:
        if pool is not None:
            pool.delayed -= 1
        if item.output is None:
            self.enqueue([item])

    def requeue(self, item: Input, otherwise: Result | None = None) -> None:
        """Run an input again, before those that have not run yet.

        One that is bound to a connection which saw part of an answer ends with ``otherwise``.
        """
        if item.output is not None:
            return
        if item.cancelled:
            self._calls.finish([(item, terminated(item, self._clock.now()))])
            return
        if not _repeatable(item):
            self.finish(item, otherwise or _UNREPEATABLE)
            return
        item.attempt += 1
        item.started_at = 0.0
        record = self._functions.find(item.call.function_id)
        if record is None or not self._board.may_run(record):
            self._calls.finish([(item, terminated(item, self._clock.now(), "App stopped"))])
            return
        pool = self._board.pool(record)
        pool.push_front(item)
        asyncio.get_running_loop().call_soon(self._board.step, pool)

    def finish(self, item: Input, result: Result) -> Durable:
        now = self._clock.now()
        output = Output(
            input_id=item.input_id,
            idx=item.idx,
            result=result,
            data_format=1 if result.data is not None else 0,
            task_id=item.task_id,
            started_at=now,
            finished_at=now,
        )
        return self._calls.finish([(item, output)])

    def policy(self, item: Input):
        record = self._functions.find(item.call.function_id)
        return record.spec.retry_policy if record and record.spec else None


def _repeatable(item: Input) -> bool:
    """Whether the input can run anew: not if a connection saw part of what it said."""
    if item.call.lease is not None:
        return item.call.lease.place is None
    return item.call.exchange is None or item.call.exchange.rewind()
