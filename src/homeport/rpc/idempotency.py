"""Answers a repeated call with the first one's answer.

The official client repeats a unary call with the same ``x-idempotency-key`` when it did not see
the answer, so a call that changes something must not be carried out twice. See
``docs/decisions/0002-idempotency.md`` for what this guards and what the services guard.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from homeport.kernel.clock import Clock
from homeport.transport.dispatch import Trailers

Key = tuple[str, str, str]
"""Caller, method, idempotency key."""
Answer = tuple[bytes, Trailers]


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[Answer]
    waiters: int = 0


@dataclass(slots=True)
class _Done:
    answer: Answer
    size_bytes: int
    expires_at: float


class Idempotency:
    """Joins and remembers calls.

    Answers are kept ``ttl_s`` seconds, at most ``count_max`` of them with ``size_bytes_max`` bytes
    in all; the least recently asked for go first. Failures are not remembered: nothing was changed
    (a service's transaction is undone), and the client's repeat is meant to try again. Work that
    nobody waits for any more is given ``ttl_s`` to end: no repeat comes later than that.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        ttl_s: float = 600.0,
        count_max: int = 20_000,
        size_bytes_max: int = 64 * 1024 * 1024,
    ) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._count_max = count_max
        self._size_bytes_max = size_bytes_max
        self._running: dict[Key, _Running] = {}
        self._done: OrderedDict[Key, _Done] = OrderedDict()
        self._size_bytes = 0

    def __len__(self) -> int:
        """How many answers are remembered."""
        return len(self._done)

    @property
    def size_bytes(self) -> int:
        """Bytes of all remembered answers."""
        return self._size_bytes

    async def run(
        self, key: Key, work: Callable[[], Coroutine[Any, Any, Answer]], *, ends_with_caller: bool
    ) -> Answer:
        """The answer of ``work``, of the running call with the same key, or the remembered one.

        Cancelling this coroutine leaves the work to the others who wait for it; if there are
        none it goes on and its answer is remembered, unless ``ends_with_caller``.
        """
        done = self._done.get(key)
        if done is not None and done.expires_at > self._clock.monotonic():
            self._done.move_to_end(key)
            done.expires_at = self._clock.monotonic() + self._ttl_s
            return done.answer
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = _Running(asyncio.create_task(work()))
            running.task.add_done_callback(lambda task: self._finished(key, task))
        running.waiters += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiters -= 1
            if not running.waiters and not running.task.done():
                self._abandon(key, running, ends_with_caller)

    async def stop(self) -> None:
        """Cancel what still runs and wait for its end (the server is going down)."""
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _abandon(self, key: Key, running: _Running, ends_with_caller: bool) -> None:
        if ends_with_caller:
            running.task.cancel()
            # A repeat must not join what is being cancelled.
            self._forget_running(key, running.task)
            return

        def give_up() -> None:
            if not running.waiters:
                running.task.cancel()

        timer = asyncio.get_running_loop().call_later(self._ttl_s, give_up)
        running.task.add_done_callback(lambda _: timer.cancel())

    def _forget_running(self, key: Key, task: asyncio.Task[Answer]) -> None:
        running = self._running.get(key)
        if running is not None and running.task is task:
            del self._running[key]

    def _finished(self, key: Key, task: asyncio.Task[Answer]) -> None:
        self._forget_running(key, task)
        if task.cancelled() or task.exception() is not None:
            return
        answer = task.result()
        size_bytes = len(answer[0]) + sum(map(len, key))
        self._drop(key)
        self._done[key] = _Done(answer, size_bytes, self._clock.monotonic() + self._ttl_s)
        self._size_bytes += size_bytes
        self._evict()

    def _evict(self) -> None:
        now = self._clock.monotonic()
        while self._done:
            key, oldest = next(iter(self._done.items()))
            if (
                oldest.expires_at > now
                and len(self._done) <= self._count_max
                and self._size_bytes <= self._size_bytes_max
            ):
                return
            self._drop(key)

    def _drop(self, key: Key) -> None:
        done = self._done.pop(key, None)
        if done is not None:
            self._size_bytes -= done.size_bytes
