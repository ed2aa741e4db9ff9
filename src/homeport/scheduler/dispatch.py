"""Which container gets which input, and how many containers there should be."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable

from homeport.calls.lease import Place
from homeport.calls.model import CallType, Input, InputState
from homeport.functions.model import FunctionSpec
from homeport.kernel.clock import Clock
from homeport.kernel.resources import Resources
from homeport.link.messages import (
    DeliverInputs,
    InputItem,
    RecallInputs,
)
from homeport.nodes.service import NodeService
from homeport.scheduler.autoscale import IdleTask, PoolView, plan
from homeport.scheduler.board import Board
from homeport.scheduler.fairness import richest, share
from homeport.scheduler.fleet import Fleet
from homeport.scheduler.placement import Want
from homeport.scheduler.pool import STUCK_S, Pool, Task

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
        self._given: dict[str, Task] = {}
        """The container that another app last gave up for a starved function."""
        self.waiting_elsewhere: Callable[[], Iterable[Want]] = tuple
        """What sandboxes want that wait for a GPU (set while wiring)."""
        board.step = self.step
        board.lease = self.lease

    def forget(self, pool: Pool) -> None:
        """The pool wants no containers any more."""
        self._starved.pop(pool.record.function_id, None)
        self._given.pop(pool.record.function_id, None)

    def serve_starved(self) -> None:
        """There may be room: look at the pools that wait for some."""
        if not self._starved:
            return
        # Whose app has least of the machine comes first; of equals, who waited longest.
        capacity, used = self._fleet.capacity(), self._board.used
        order = sorted(
            self._starved.items(),
            key=lambda item: share(used.get(item[1].record.app_id, Resources()), capacity),
        )
        room = self._fleet.room()
        for function_id, pool in order:
            if self._fleet.demand(pool).fits_in(room):
                del self._starved[function_id]
                self.step(pool)
                room = self._fleet.room()

    def idle(self, task: Task) -> None:
        """A container has nothing to do: others may need its hands, or its room."""
        self._spread(task.pool)
        self._give_way(task)

    def step(self, pool: Pool) -> None:
        """Hand out what can be handed out, then see to the number of containers."""
        for limit in (pool.spec.slots, pool.spec.slots + pool.prefetch):
            while pool.waiting and (task := pool.least_loaded(limit)) is not None:
                self._fill(task, limit)
        self._scale(pool)

    def lease(self, pool: Pool, item: Input) -> None:
        """Find a connection a place; in the common case that is all there is to do."""
        if not pool.waiting:
            task = pool.least_loaded(pool.spec.slots)
            if task is not None:
                pool.push([item])
                self._fill(task, limit=pool.spec.slots)
                if pool.running > len(pool.tasks) * _target_slots(pool.spec):
                    self._scale_soon(pool)
                return
        pool.push([item])
        self.step(pool)

    def give_back(self, task: Task, item: Input) -> None:
        """The connection is done with its place."""
        if task.held.take(item.input_id) is not None:
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
            if task.inputs_left > 0:
                task.inputs_left -= 1
            task.held[item.input_id] = item
            if item.call.lease is not None:
                task.leases += 1
                task.running.add(item.input_id)
                item.started_at = self._clock.now()
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
        if decision.start and self._fleet.start(pool, decision.start) < decision.start:
            self._starved[pool.record.function_id] = pool
            if pool.tally.outdated:
                self._retire(pool, 1)
            else:
                self.reclaim(self._fleet.want(pool), pool)
        else:
            self._starved.pop(pool.record.function_id, None)
        if decision.check_at is not None:
            self._look_again(pool, decision.check_at)

    def _retire(self, pool: Pool, count: int) -> None:
        """End ``count`` outdated containers, those with the least to do first."""
        for task in heapq.nsmallest(count, pool.outdated(), key=lambda task: len(task.held)):
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

    def reclaim(self, want: Want, starved: Pool | None = None) -> None:
        """The machine is full: end the longest idle container that another function can spare.

        If there is none, an app that has more of the machine than the starved one gives a container
        up when that has done what it runs.
        """
        for task in self._board.idle():
            if task.pool is starved or task.pool.waiting or not task.pool.can_spare:
                continue
            if self._fleet.helps(want, task):
                self._fleet.stop(task, graceful=True)
                return
        if starved is not None and starved.waiting:
            self._share(want, starved)

    def _share(self, want: Want, starved: Pool) -> None:
        function_id = starved.record.function_id
        given = self._given.get(function_id)
        if given is not None and not given.gone.is_set():
            return  # one after the other: the next may not be needed
        app_id = starved.record.app_id
        for richer in richest(self._board.used, app_id, want.demand, self._fleet.capacity()):
            pools = [pool for pool in self._board.pools_of(richer) if pool.can_spare]
            for pool in sorted(pools, key=lambda pool: -len(pool.tasks)):
                task = pool.least_busy()
                if task is not None and self._fleet.helps(want, task):
                    self._given[function_id] = task
                    self._fleet.stop(task, graceful=True)
                    return

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
        if pool.waiting or not pool.tally.has_idle:
            return
        now = self._clock.monotonic()
        stuck_at: list[float] = []
        for task in pool.overloaded():
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
                self.reclaim(self._fleet.want(pool), pool)
                return
        for want in self.waiting_elsewhere():
            if self._fleet.helps(want, idle):
                self.reclaim(want)
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


def _target_slots(spec: FunctionSpec) -> int:
    target = (spec.target_concurrent or max(1, spec.max_concurrent)) * max(1, spec.batch_max_size)
    return min(target, spec.slots)


def _view(pool: Pool, now: float, is_live: bool) -> PoolView:
    spec = pool.spec
    tally = pool.tally
    return PoolView(
        now=now,
        waiting=pool.waiting_count,
        running=tally.running,
        ready=tally.ready,
        stalled=tally.stalled,
        starting=tally.starting,
        idle=(IdleTask(task.task_id, task.idle_since) for task in pool.idle()),
        slots=spec.slots,
        target_slots=_target_slots(spec),
        settings=pool.settings,
        input_s=pool.input_s,
        progress_at=pool.progress_at,
        single_use=spec.single_use,
        is_live=is_live and pool.is_live,
        keep_min=pool.keep_min,
        outdated=len(tally.outdated),
        can_start=not pool.start_failures,
    )
