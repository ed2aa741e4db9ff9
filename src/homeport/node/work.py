"""The work loop of one container, as a state machine: what it may be given, what its outputs mean.

No sockets, no tasks, no timers: each method takes an event, returns ``Effects`` for the caller to
carry out, and ``next_deadline`` says when ``due`` wants to be called. An attempt is one
``(input_id, retry_count)``.

Facts of the protocol behind the rules:

* A container has one ``FunctionGetInputs`` outstanding and takes one input, or one batch, an answer.
* ``kill_switch`` must be alone in its answer: a batch before it would be dropped.
* A cancel event reaches a container only while it runs the input; one that comes between hand-out
  and start is ignored, so it is repeated until the attempt ends.
* An input may wait for the result of another one of the same function. It must not have to wait
  behind it for the container: what cannot begin soon goes back to the server.
* Cancelling one input of a batch ends the whole batch, and a container that was interrupted ends
  what it runs with TERMINATED outputs: these innocent attempts go back to the server.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from homeport.kernel.clock import Clock
from homeport.link.messages import (
    STATUS_TERMINATED,
    STATUS_TIMEOUT,
    InputItem,
    OutputItem,
    Result,
)

Key = tuple[str, int]
"""``(input_id, retry_count)``."""

TIMEOUT_GRACE_S = 3.0
"""How long a timed-out attempt may take to end after its cancel event."""
CANCEL_GRACE_S = 10.0
"""The same for a cancelled one: its clean-up code deserves more than a timeout's."""
SETTLE_S = 0.1
"""No cancel event sooner after hand-out: the client loses an async input, and the slot with it, if
its task is cancelled before it first ran."""
INTERRUPT_GRACE_S = 10.0
"""From the interrupt (SIGINT) to the kill."""
BOOT_S = 60.0
"""How long a container may take to say hello: until then it is the platform that starts, and only
then the user's part begins, to which the startup timeout applies."""
PATIENCE_S = 0.5
"""How long an input may wait behind those that run in the container, without any of them ending
(and beyond the linger of a batch), before the server is asked to find it another one."""
EXIT_GRACE_S = 30.0
"""How long exit handlers and left-over threads may run once a container has nothing to do."""
FINISHED_REMEMBERED = 4096
"""Finished attempts whose repeated delivery is recognised."""


class Fate(Enum):
    """What is to become of a running attempt."""

    WANTED = "wanted"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    """Reported as TIMEOUT already; what the container still says of it is dropped."""
    UNWANTED = "unwanted"
    """The server gave it to someone else; what the container says of it is dropped."""


class Phase(Enum):
    """The container's life as its work loop sees it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """Gets a kill switch next; what it runs may finish."""
    STOPPING = "stopping"
    """Was interrupted; TERMINATED outputs are no longer user cancellations."""


@dataclass(frozen=True, slots=True)
class WorkRules:
    """The part of ``StartTask`` that governs the loop. Seconds; 0 = no limit."""

    startup_timeout_s: float = 0.0
    input_timeout_s: float = 0.0
    batch_max_size: int = 0
    batch_linger_ms: int = 0
    single_use: bool = False


@dataclass(slots=True)
class Group:
    """Attempts handed out in one answer: one execution in the container."""

    attempts: list[Attempt] = field(default_factory=list["Attempt"])
    disturbed: bool = False
    """One of them was cancelled, which ends all of them."""


@dataclass(slots=True, eq=False)
class Attempt:
    """An attempt that was handed to the container.

    ``started_at`` is Unix time; from ``settled_at`` it may be cancelled, at ``deadline`` something
    is due for it (both on the monotonic clock).
    """

    item: InputItem
    group: Group
    started_at: float
    settled_at: float
    deadline: float | None
    fate: Fate = Fate.WANTED
    interrupted: bool = False

    @property
    def key(self) -> Key:
        return self.item.input_id, self.item.retry_count


@dataclass(slots=True)
class Effects:
    """What the caller has to do, in this order."""

    outputs: list[OutputItem] = field(default_factory=list[OutputItem])
    patient: bool = False
    """``outputs`` may wait for those of the next inputs."""
    returned: list[Key] = field(default_factory=list[Key])
    cancel_event: bool = False
    """There is something for the next heartbeat answer."""
    wake: bool = False
    """A waiting ``FunctionGetInputs`` should ask again."""
    interrupt: bool = False
    kill: str = ""
    """A sentence: kill the container because of it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """An answer to ``FunctionGetInputs``: inputs, or the kill switch."""

    items: tuple[InputItem, ...]
    returned: tuple[Key, ...] = ()
    """Attempts that can no longer start here."""
    repeated: bool = False
    """The container lost an earlier answer; these inputs were reported as started before."""

    @property
    def is_kill_switch(self) -> bool:
        return not self.items


@dataclass(frozen=True, slots=True)
class End:
    """What was left when the container was gone."""

    outputs: list[OutputItem]
    unfinished: list[Key]
    unstarted: list[Key]


class WorkLoop:
    """One container's inputs from delivery to output."""

    def __init__(self, rules: WorkRules, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._queue: deque[tuple[InputItem, float]] = deque()
        self._running: dict[Key, Attempt] = {}
        self._finished: OrderedDict[Key, None] = OrderedDict()
        self._progress_at = 0.0
        """When an attempt was last handed out or ended."""
        self._phase = Phase.STARTING
        self._exhausted = False
        self._interrupted_here = False
        self._was_ready = False
        self._kill_switch_given = False
        self._kill_reason = ""
        self._kill_at: float | None = None
        self._startup_deadline: float | None = None
        self._startup_reason = ""

    # ── what others may look at ───────────────────────────────────────────────────────────────

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def is_ready(self) -> bool:
        """Whether the container ever asked for an input."""
        return self._was_ready

    def held(self) -> list[Key]:
        """Every attempt the node still owes an answer for, oldest first."""
        started = [
            attempt.key
            for attempt in self._running.values()
            if attempt.fate in (Fate.WANTED, Fate.CANCELLED)
        ]
        return started + [(item.input_id, item.retry_count) for item, _ in self._queue]

    def started(self) -> list[Attempt]:
        """The attempts in the container that the server still wants."""
        return [a for a in self._running.values() if a.fate in (Fate.WANTED, Fate.CANCELLED)]

    def sole_input(self) -> tuple[str, str]:
        """``(input_id, call_id)`` when exactly one attempt runs, else two empty strings."""
        if len(self._running) == 1:
            item = next(iter(self._running.values())).item
            return item.input_id, item.call_id
        return "", ""

    def concurrency(self, target: int, maximum: int) -> int:
        """How many slots the container should have now: ``target`` … ``maximum``, never 0."""
        wanted = len(self._running) + len(self._queue)
        return max(1, target, min(wanted, maximum))

    def next_deadline(self) -> float | None:
        """When ``due`` is to be called, on the monotonic clock."""
        deadlines = [a.deadline for a in self._running.values() if a.deadline is not None]
        deadlines += [at for at in (self._kill_at, self._startup_deadline) if at is not None]
        if self._queue and self._running:
            deadlines.append(self._patient_until(self._queue[0][1]))
        return min(deadlines, default=None)

    # ── events from the server ────────────────────────────────────────────────────────────────

    def deliver(self, items: Iterable[InputItem]) -> Effects:
        """Take in attempts; known ones are ignored, those that cannot run here come back."""
        effects = Effects()
        known = {(item.input_id, item.retry_count) for item, _ in self._queue}
        now = self._clock.monotonic()
        for item in items:
            key = (item.input_id, item.retry_count)
            if key in known or key in self._running or key in self._finished:
                continue
            known.add(key)
            if self._is_closed:
                effects.returned.append(key)
                continue
            self._queue.append((item, now))
            effects.wake = True
        return effects

    def cancel(self, input_ids: Iterable[str], *, gentle: bool = False) -> Effects:
        """Drop what is not started (as TERMINATED outputs), ask the container to end the rest.

        ``gentle``: it may go on as long as it likes, within its timeout.
        """
        effects = Effects()
        ids = set(input_ids)
        kept: deque[tuple[InputItem, float]] = deque()
        for item, arrived in self._queue:
            if item.input_id in ids:
                effects.outputs.append(self._terminated(item))
                self._remember((item.input_id, item.retry_count))
            else:
                kept.append((item, arrived))
        self._queue = kept
        for attempt in self._running.values():
            if attempt.item.input_id in ids and attempt.fate is Fate.WANTED:
                deadline = attempt.deadline
                self._doom(attempt, Fate.CANCELLED, CANCEL_GRACE_S)
                if gentle:
                    attempt.deadline = deadline
                effects.cancel_event = True
        return effects

    def recall(self, keys: Iterable[Key]) -> Effects:
        """The server has a better place for these attempts: those not started go back."""
        wanted = set(keys)
        kept: deque[tuple[InputItem, float]] = deque()
        effects = Effects()
        for item, arrived in self._queue:
            key = (item.input_id, item.retry_count)
            if key in wanted:
                effects.returned.append(key)
            else:
                kept.append((item, arrived))
        self._queue = kept
        return effects

    def forget(self, keys: Iterable[Key]) -> Effects:
        """The server no longer wants these attempts: drop them without any report."""
        effects = Effects()
        unwanted = set(keys)
        self._queue = deque(
            entry
            for entry in self._queue
            if (entry[0].input_id, entry[0].retry_count) not in unwanted
        )
        for key in unwanted & self._running.keys():
            attempt = self._running[key]
            if attempt.fate in (Fate.WANTED, Fate.CANCELLED):
                self._doom(attempt, Fate.UNWANTED, CANCEL_GRACE_S)
                effects.cancel_event = True
        return effects

    def drain(self) -> Effects:
        """No further inputs: running ones finish, then exit handlers run."""
        if self._phase is Phase.STOPPING:
            return Effects()
        self._phase = Phase.DRAINING
        effects = Effects(returned=self._empty_queue(), wake=True)
        self._limit_exit()
        return effects

    def stop(self, grace_s: float, reason: str) -> Effects:
        """Interrupt now, kill ``grace_s`` seconds later with ``reason`` if it is still there.

        A container that is still starting is killed at once: it has nothing to clean up yet, and
        interrupted it would show its user where its imports were.
        """
        effects = Effects(returned=self._empty_queue(), wake=True)
        if not self._was_ready and not self._running:
            self._phase = Phase.STOPPING
            effects.kill = "the container was stopped before it was ready"
            return effects
        effects.interrupt = self._phase is not Phase.STOPPING
        self._phase = Phase.STOPPING
        at = self._clock.monotonic() + grace_s
        if self._kill_at is None or at < self._kill_at:
            self._kill_at, self._kill_reason = at, reason
        return effects

    # ── events from the container ─────────────────────────────────────────────────────────────

    def launched(self) -> None:
        """The container's process runs."""
        if not self._was_ready:
            self._startup_deadline = self._clock.monotonic() + BOOT_S
            self._startup_reason = (
                f"the container's Python did not come up within {_seconds(BOOT_S)}"
            )

    def greeted(self) -> None:
        """The container says hello (``ContainerHello``) and turns to the user's code.

        The startup timeout counts from here.
        """
        if self._was_ready:
            return
        self._startup_deadline = None
        limit_s = self._rules.startup_timeout_s
        if limit_s > 0:
            self._startup_deadline = self._clock.monotonic() + limit_s
            self._startup_reason = (
                f"the container was not ready within its startup timeout of {_seconds(limit_s)}"
            )

    def ready(self) -> bool:
        """The container is up; says whether that is news."""
        if self._was_ready:
            return False
        self._was_ready = True
        self._startup_deadline = None
        if self._phase is Phase.STARTING:
            self._phase = Phase.READY
        return True

    def init_failed(self) -> None:
        """The container reported a failed start or exit (``TaskResult``) and is about to end."""
        self._exhausted = True
        self._startup_deadline = None
        self._limit_exit()

    def take(self, concurrency: int = 1) -> Grant | float | None:
        """Answer ``FunctionGetInputs``.

        ``concurrency`` is what the container says it runs at once. Returns a grant, or how many
        seconds to wait for a batch to fill, or ``None``: wait for a ``wake``.
        """
        if self._is_closed:
            returned = tuple(self._empty_queue())
            self._kill_switch_given = True
            self._limit_exit()
            return Grant((), returned)
        if concurrency <= 1 and (lost := self._lost_grant()):
            return Grant(lost, repeated=True)
        chosen = self._choose()
        if not chosen:
            return None
        if self._rules.batch_max_size > 0 and len(chosen) < self._rules.batch_max_size:
            now = self._clock.monotonic()
            ripe_at = chosen[0][1] + self._rules.batch_linger_ms / 1000
            if now < ripe_at:
                return ripe_at - now
        return self._hand_out([item for item, _ in chosen])

    def finish(self, outputs: Sequence[OutputItem]) -> Effects:
        """Sort the outputs of ``FunctionPutOutputs``: report, give back or drop each."""
        effects = Effects(patient=self._has_next)
        for output in outputs:
            attempt = self._running.pop((output.input_id, output.retry_count), None)
            if attempt is None or attempt.fate in (Fate.TIMED_OUT, Fate.UNWANTED):
                continue
            innocent = attempt.fate is Fate.WANTED and (
                attempt.group.disturbed or self._phase is Phase.STOPPING
            )
            if innocent and output.result.status == STATUS_TERMINATED:
                effects.returned.append(attempt.key)
                continue
            self._remember(attempt.key)
            effects.outputs.append(output)
            effects.patient = effects.patient and attempt.item.patient
        if outputs:
            self._progress_at = self._clock.monotonic()
            effects.wake = True
        if self._is_closed:
            self._limit_exit()
        return effects

    def cancelled_ids(self) -> list[str]:
        """Inputs for the next heartbeat's cancel event (repeated until they end).

        None for a container that was interrupted: that ends its inputs, and a cancellation on top
        would end its exit handlers.
        """
        if self._phase is Phase.STOPPING:
            return []
        now = self._clock.monotonic()
        return sorted({a.item.input_id for a in self._doomed() if a.settled_at <= now})

    def next_cancel_at(self) -> float | None:
        """When ``cancelled_ids`` will name one more, on the monotonic clock."""
        if self._phase is Phase.STOPPING:
            return None
        now = self._clock.monotonic()
        return min((a.settled_at for a in self._doomed() if a.settled_at > now), default=None)

    # ── time ──────────────────────────────────────────────────────────────────────────────────

    def due(self) -> Effects:
        """Everything whose time has come: timeouts, escalations, the end of patience."""
        effects = Effects()
        now = self._clock.monotonic()
        for attempt in self._running.values():
            if attempt.deadline is not None and attempt.deadline <= now:
                self._escalate(attempt, effects)
        effects.returned.extend(self._give_up_waiting(now))
        if self._startup_deadline is not None and self._startup_deadline <= now:
            self._startup_deadline = None
            self._phase = Phase.STOPPING
            effects.kill = self._startup_reason
        if self._kill_at is not None and self._kill_at <= now:
            effects.kill = effects.kill or self._kill_reason
            self._kill_at = None
            self._phase = Phase.STOPPING
        if effects.interrupt:
            effects.returned.extend(self._empty_queue())
            effects.wake = True
        return effects

    def end(self) -> End:
        """The container is gone: what becomes of what it had.

        Attempts that ended because this node interrupted the container, or cancelled a neighbour
        in it, count as unstarted: their end is not their fault.
        """
        doomed = any(attempt.fate is not Fate.WANTED for attempt in self._running.values())
        outputs: list[OutputItem] = []
        innocent: list[Key] = []
        for attempt in self._running.values():
            if attempt.fate is Fate.CANCELLED:
                outputs.append(self._terminated(attempt.item, attempt.started_at))
            elif attempt.fate is Fate.WANTED:
                innocent.append(attempt.key)
        self._running.clear()
        unstarted = self._empty_queue()
        if doomed or self._interrupted_here:
            return End(outputs, [], innocent + unstarted)
        return End(outputs, innocent, unstarted)

    # ── inside ────────────────────────────────────────────────────────────────────────────────

    @property
    def _is_closed(self) -> bool:
        return self._exhausted or self._phase in (Phase.DRAINING, Phase.STOPPING)

    @property
    def _has_next(self) -> bool:
        """Whether the container finds another input when it asks."""
        return bool(self._queue) and not self._is_closed

    def _patient_until(self, arrived_at: float) -> float:
        linger_s = self._rules.batch_linger_ms / 1000 if self._rules.batch_max_size > 0 else 0.0
        return max(arrived_at, self._progress_at) + PATIENCE_S + linger_s

    def _give_up_waiting(self, now: float) -> list[Key]:
        """What has waited too long behind the running attempts, oldest first."""
        given_up: list[Key] = []
        while self._running and self._queue and self._patient_until(self._queue[0][1]) <= now:
            item, _ = self._queue.popleft()
            given_up.append((item.input_id, item.retry_count))
        return given_up

    def _doomed(self) -> list[Attempt]:
        return [a for a in self._running.values() if a.fate is not Fate.WANTED]

    def _choose(self) -> list[tuple[InputItem, float]]:
        """The next input, or the oldest ones of one method for a batch."""
        running_ids = {attempt.item.input_id for attempt in self._running.values()}
        size = max(1, self._rules.batch_max_size)
        chosen: list[tuple[InputItem, float]] = []
        for entry in self._queue:
            item = entry[0]
            # A cancel event names an input, not an attempt: never two attempts of one at once.
            if item.input_id in running_ids:
                continue
            if chosen and item.method_name != chosen[0][0].method_name:
                continue
            chosen.append(entry)
            running_ids.add(item.input_id)
            if len(chosen) == size:
                break
        return chosen

    def _hand_out(self, items: list[InputItem]) -> Grant:
        group = Group()
        timeout_s = self._rules.input_timeout_s
        now = self._progress_at = self._clock.monotonic()
        deadline = now + timeout_s if timeout_s > 0 else None
        taken = {id(item) for item in items}
        self._queue = deque(entry for entry in self._queue if id(entry[0]) not in taken)
        for item in items:
            attempt = Attempt(item, group, self._clock.now(), now + SETTLE_S, deadline)
            group.attempts.append(attempt)
            self._running[attempt.key] = attempt
        returned: tuple[Key, ...] = ()
        if self._rules.single_use or any(item.final for item in items):
            self._exhausted = True
            returned = tuple(self._empty_queue())
        return Grant(tuple(items), returned)

    def _lost_grant(self) -> tuple[InputItem, ...]:
        """Inputs of an answer that never arrived.

        A container without concurrency asks again only when it has no input, so what counts as
        running must have been in an answer whose connection broke.
        """
        return tuple(a.item for a in self._running.values() if a.fate is Fate.WANTED)

    def _doom(self, attempt: Attempt, fate: Fate, grace_s: float) -> None:
        attempt.fate = fate
        attempt.group.disturbed = True
        attempt.deadline = self._clock.monotonic() + grace_s

    def _escalate(self, attempt: Attempt, effects: Effects) -> None:
        if attempt.fate is Fate.WANTED:
            effects.outputs.append(self._timed_out(attempt))
            self._remember(attempt.key)
            self._doom(attempt, Fate.TIMED_OUT, TIMEOUT_GRACE_S)
            effects.cancel_event = True
        elif not attempt.interrupted:
            attempt.interrupted = True
            attempt.deadline = self._clock.monotonic() + INTERRUPT_GRACE_S
            if self._phase is not Phase.STOPPING:
                self._phase = Phase.STOPPING
                self._interrupted_here = True
                effects.interrupt = True
        else:
            attempt.deadline = None
            what = "timed out" if attempt.fate is Fate.TIMED_OUT else "was cancelled"
            self._interrupted_here = True
            effects.kill = (
                f"input {attempt.item.input_id} {what} and did not end when it was interrupted"
            )

    def _limit_exit(self) -> None:
        """Start the clock of the exit handlers once nothing runs any more."""
        if self._kill_at is not None or self._phase is Phase.STOPPING:
            return
        if not self._running and (self._kill_switch_given or self._exhausted):
            self._kill_at = self._clock.monotonic() + EXIT_GRACE_S
            self._kill_reason = (
                f"the container did not exit within {_seconds(EXIT_GRACE_S)} of its last input"
            )

    def _empty_queue(self) -> list[Key]:
        keys = [(item.input_id, item.retry_count) for item, _ in self._queue]
        self._queue.clear()
        return keys

    def _remember(self, key: Key) -> None:
        self._finished[key] = None
        if len(self._finished) > FINISHED_REMEMBERED:
            self._finished.popitem(last=False)

    def _terminated(self, item: InputItem, started_at: float | None = None) -> OutputItem:
        now = self._clock.now()
        result = Result(STATUS_TERMINATED)
        return OutputItem(item.input_id, item.retry_count, result, 0, started_at or now, now)

    def _timed_out(self, attempt: Attempt) -> OutputItem:
        item = attempt.item
        text = (
            f"Input {item.input_id} was stopped: it ran longer than its timeout of "
            f"{_seconds(self._rules.input_timeout_s)}."
        )
        result = Result(STATUS_TIMEOUT, exception=text)
        return OutputItem(
            item.input_id, item.retry_count, result, 0, attempt.started_at, self._clock.now()
        )


def _seconds(value: float) -> str:
    return f"{value:g} s"
