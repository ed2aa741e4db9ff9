"""Which container gets which input, and how many containers there should be."""

from __future__ import annotations

import asyncio

from homeport.calls.lease import Place
from homeport.calls.model import CallType, Input, InputState
from homeport.functions.model import FunctionSpec
from homeport.kernel.clock import Clock
from homeport.link.messages import (
    DeliverInputs,
    InputItem,
    RecallInputs,
)
from homeport.nodes.service import NodeService
from homeport.scheduler.autoscale import IdleTask, PoolView, plan
from homeport.scheduler.board import Board
from homeport.scheduler.fleet import Fleet
from homeport.scheduler.pool import STUCK_S, Pool, Task, TaskStatus

SCALE_LINGER_S = 0.02
"""Outputs make no hurry: a container takes longer to start, and stops after seconds of idleness."""


class Dispatch:
    """Hands waiting inputs to containers and carries out the plans for their number."""

    def __init__(self, clock: Clock, nodes: NodeService, board: Board, fleet: Fleet) -> None:
        self._clock = clock
        self._nodes = nodes
        self._board = board
        self._fleet = fleet
        self._starved: dict[str, Pool] = {}
        board.step = self.step
        board.lease = self.lease

    def forget(self, pool: Pool) -> None:
        """The pool wants no containers any more."""
        self._starved.pop(pool.record.function_id, None)

    def serve_starved(self) -> None:
        """There may be room: look at the pools that wait for some."""
        # Round robin: whoever waited longest is served first, then goes to the end.
        for function_id in list(self._starved):
            self.step(self._starved.pop(function_id))

    def idle(self, task: Task) -> None:
        """A container has nothing to do: others may need its hands, or its room."""
        self._spread(task.pool)
        self._give_way(task)

    def step(self, pool: Pool) -> None:
        """Hand out what can be handed out, then see to the number of containers."""
        if pool.waiting:
            for task in sorted(pool.tasks.values(), key=lambda t: (t.outdated, len(t.held))):
                if not pool.waiting:
                    break
                self._fill(task, limit=pool.spec.slots)
            for task in list(pool.tasks.values()):
                if not pool.waiting:
                    break
                self._fill(task, limit=pool.spec.slots + pool.prefetch)
        self._scale(pool)

    def lease(self, pool: Pool, item: Input) -> None:
        """Find a connection a place; in the common case that is all there is to do."""
        if not pool.waiting:
            ready = [task for task in pool.tasks.values() if task.room > 0]
            if ready:
                pool.push([item])
                self._fill(min(ready, key=_load), limit=pool.spec.slots)
                if pool.running > len(pool.tasks) * _target_slots(pool.spec):
                    self._scale_soon(pool)
                return
        pool.push([item])
        self.step(pool)

    def give_back(self, task: Task, item: Input) -> None:
        """The connection is done with its place."""
        if task.held.pop(item.input_id, None) is not None:
            task.leases -= 1
            task.running.discard(item.input_id)
        if task.leaving is not None and not task.leases:
            self._fleet.part(task)
        self.advanced(task)

    def _fill(self, task: Task, limit: int) -> None:
        """Give ``task`` waiting inputs up to ``limit`` held ones."""
        pool = task.pool
        count = min(task.room, limit - len(task.held))
        if count <= 0:
            return
        if not task.held:
            task.progress_at = self._clock.monotonic()
        items: list[InputItem] = []
        for _ in range(count):
            item = pool.pop()
            if item is None:
                break
            item.state = InputState.ASSIGNED
            item.task_id = task.task_id
            task.held[item.input_id] = item
            if task.inputs_left > 0:
                task.inputs_left -= 1
            if item.call.lease is not None:
                task.leases += 1
                task.running.add(item.input_id)
                item.call.lease.grant(Place(task.task_id, task.address))
                continue
            items.append(_item(item, final=task.inputs_left == 0))
        if items:
            self._nodes.send(task.node_id, DeliverInputs(task.task_id, items))

    def _scale_soon(self, pool: Pool) -> None:
        """One look at the number of containers for all the outputs of a moment."""
        if pool.scaling is None:
            loop = asyncio.get_running_loop()
            pool.scaling = loop.call_later(SCALE_LINGER_S, self._scale, pool)

    def _scale(self, pool: Pool) -> None:
        if pool.scaling is not None:
            pool.scaling.cancel()
            pool.scaling = None
        now = self._clock.monotonic()
        decision = plan(_view(pool, now, self._board.may_run(pool.record)))
        for task_id in decision.stop:
            self._fleet.stop(pool.tasks[task_id], graceful=True)
        if decision.retire:
            self._retire(pool, decision.retire)
        if decision.start and now < pool.not_before:
            self._look_again(pool, pool.not_before)
            return
        for _ in range(decision.start):
            if not self._fleet.start(pool):
                self._starved[pool.record.function_id] = pool
                if any(task.is_outdated for task in pool.tasks.values()):
                    self._retire(pool, 1)
                else:
                    self.reclaim(pool)
                break
        else:
            self._starved.pop(pool.record.function_id, None)
        if decision.check_at is not None:
            self._look_again(pool, decision.check_at)

    def _retire(self, pool: Pool, count: int) -> None:
        """End ``count`` outdated containers, those with the least to do first."""
        outdated = [task for task in pool.tasks.values() if task.is_outdated]
        for task in sorted(outdated, key=lambda task: len(task.held))[:count]:
            self._fleet.stop(task, graceful=True)

    def _look_again(self, pool: Pool, at: float) -> None:
        """Plan once more at ``at``, or before: a timer that is set for earlier stays."""
        if pool.timer is not None:
            if pool.timer_at <= at:
                return
            pool.timer.cancel()
        delay = max(0.0, at - self._clock.monotonic())
        pool.timer_at = at
        pool.timer = asyncio.get_running_loop().call_later(delay, self._scale_on_time, pool)

    def _scale_on_time(self, pool: Pool) -> None:
        pool.timer = None
        self._scale(pool)

    def reclaim(self, starved: Pool | None = None) -> None:
        """The machine is full: end the longest idle container that another function can spare."""
        candidates = [
            task
            for task in self._board.tasks.values()
            if task.is_idle
            and task.pool is not starved
            and not task.pool.waiting
            and len(task.pool.tasks)
            > ((task.pool.settings.min_containers or 0) if task.pool.keep_min else 0)
        ]
        if candidates:
            self._fleet.stop(min(candidates, key=lambda task: task.idle_since), graceful=True)

    def advanced(self, task: Task) -> None:
        """A container ended inputs: give it others, see what that means for the rest."""
        pool = task.pool
        task.progress_at = pool.progress_at = self._clock.monotonic()
        task.stalled = False
        if not task.held:
            task.idle_since = task.progress_at
        if pool.waiting and len(task.held) <= pool.spec.slots + pool.prefetch // 2:
            self._fill(task, limit=pool.spec.slots + pool.prefetch)
        if pool.waiting or not task.held:
            self._scale_soon(pool)
        if task.is_idle:
            self.idle(task)

    def _spread(self, pool: Pool) -> None:
        """A container has nothing to do: take over what waits behind slow inputs of others."""
        if pool.recall is not None:
            pool.recall.cancel()
            pool.recall = None
        if pool.waiting or not any(task.is_idle for task in pool.tasks.values()):
            return
        now = self._clock.monotonic()
        stuck_at: list[float] = []
        for task in pool.tasks.values():
            if len(task.held) <= pool.spec.slots:
                continue
            if now < task.progress_at + STUCK_S:
                stuck_at.append(task.progress_at + STUCK_S)
                continue
            keys = [(key, item.attempt) for key, item in task.held.items()]
            recalled = [key for key in keys if key[0] not in task.running]
            self._nodes.send(task.node_id, RecallInputs(task.task_id, recalled))
        if stuck_at:
            delay = min(stuck_at) - now
            pool.recall = asyncio.get_running_loop().call_later(delay, self._spread, pool)

    def _give_way(self, idle: Task) -> None:
        """An idle container makes room for functions that found the machine full."""
        for pool in self._starved.values():
            if pool is not idle.pool:
                self.reclaim(pool)
                return


def _item(item: Input, *, final: bool) -> InputItem:
    return InputItem(
        input_id=item.input_id,
        call_id=item.call.call_id,
        retry_count=item.attempt,
        args=item.args,
        args_blob_id=item.args_blob_id,
        data_format=item.data_format,
        method_name=item.method_name,
        invocation_type=int(item.call.invocation),
        final=final,
        patient=item.call.type is CallType.MAP,
    )


def _load(task: Task) -> tuple[bool, int]:
    return task.outdated, len(task.held)


def _target_slots(spec: FunctionSpec) -> int:
    target = (spec.target_concurrent or max(1, spec.max_concurrent)) * max(1, spec.batch_max_size)
    return min(target, spec.slots)


def _view(pool: Pool, now: float, is_live: bool) -> PoolView:
    spec = pool.spec
    serving = [task for task in pool.tasks.values() if task.status is TaskStatus.READY]
    ready = [task for task in serving if not task.outdated]
    starting = sum(
        task.status is TaskStatus.STARTING and not task.outdated for task in pool.tasks.values()
    )
    return PoolView(
        now=now,
        waiting=pool.waiting_count,
        running=sum(len(task.held) for task in serving if not task.stalled),
        ready=len(ready),
        stalled=sum(1 for task in ready if task.stalled),
        starting=starting,
        idle=tuple(IdleTask(task.task_id, task.idle_since) for task in serving if not task.held),
        slots=spec.slots,
        target_slots=_target_slots(spec),
        settings=pool.settings,
        input_s=pool.input_s,
        progress_at=pool.progress_at,
        single_use=spec.single_use,
        is_live=is_live and pool.is_live,
        keep_min=pool.keep_min,
        outdated=sum(task.is_outdated for task in pool.tasks.values()),
        can_start=not pool.start_failures,
    )
