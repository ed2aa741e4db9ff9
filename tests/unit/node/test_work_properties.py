"""Whatever happens in whatever order: each attempt has exactly one answer."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from homeport.link.messages import (
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    InputItem,
    OutputItem,
    Result,
)
from homeport.node.work import Effects, Grant, Key, Phase, WorkLoop, WorkRules

from .test_work import FakeClock, given


class Container(RuleBasedStateMachine):
    """Plays server and container against one work loop and keeps the books."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.number = 0
        self.owed: Counter[Key] = Counter()
        self.inside: dict[Key, InputItem] = {}
        self.cancelled: set[str] = set()

    @initialize(
        timeout=st.sampled_from([0.0, 5.0]),
        batch=st.sampled_from([0, 3]),
        linger=st.sampled_from([0, 100]),
        single=st.booleans(),
        slots=st.sampled_from([1, 4]),
    )
    def begin(self, timeout: float, batch: int, linger: int, single: bool, slots: int) -> None:
        rules = WorkRules(30.0, timeout, batch, linger, single)
        self.size = max(1, batch)
        self.slots = slots
        self.work = WorkLoop(rules, self.clock)
        self.work.launched()

    # ── books ─────────────────────────────────────────────────────────────────────────────────

    def answered(self, keys: list[Key]) -> None:
        for key in keys:
            self.owed[key] -= 1
            assert self.owed[key] >= 0, f"{key} was answered twice"

    def apply(self, effects: Effects) -> None:
        self.answered([(o.input_id, o.retry_count) for o in effects.outputs])
        self.answered(effects.returned)
        for output in effects.outputs:
            if output.result.status == STATUS_TERMINATED:
                assert output.input_id in self.cancelled

    # ── the server ────────────────────────────────────────────────────────────────────────────

    @rule(count=st.integers(1, 4), method=st.sampled_from(["", "other"]))
    def deliver(self, count: int, method: str) -> None:
        items = [given(f"in-{self.number + n}", method=method) for n in range(count)]
        self.number += count
        self.owed.update((item.input_id, item.retry_count) for item in items)
        self.apply(self.work.deliver(items + items))

    @precondition(lambda self: self.number > 0)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = f"in-{data.draw(st.integers(0, self.number - 1))}"
        self.cancelled.add(name)
        self.apply(self.work.cancel([name]))

    @rule(graceful=st.booleans())
    def stop(self, graceful: bool) -> None:
        self.apply(self.work.drain() if graceful else self.work.stop(3.0, "asked to"))

    @rule(seconds=st.sampled_from([0.05, 1.0, 6.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.clock.time += seconds
        self.apply(self.work.due())

    # ── the container ─────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: len(self.inside) < self.slots)
    @rule()
    def ask(self) -> None:
        if self.slots == 1 and self.inside:
            return
        self.work.ready()
        answer = self.work.take(self.slots)
        if not isinstance(answer, Grant):
            return
        self.answered(list(answer.returned))
        assert len(answer.items) <= self.size
        assert len({item.method_name for item in answer.items}) <= 1
        for item in answer.items:
            key = (item.input_id, item.retry_count)
            assert key not in self.inside
            assert item.input_id not in self.cancelled or answer.repeated is False
            self.inside[key] = item

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), again=st.booleans())
    def put(self, data: st.DataObject, again: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.inside)))
        del self.inside[key]
        stopping = self.work.phase is Phase.STOPPING
        hit = stopping or key[0] in self.cancelled
        status = STATUS_TERMINATED if hit else STATUS_SUCCESS
        output = OutputItem(key[0], key[1], Result(status), 1, 1.0, 2.0)
        self.apply(self.work.finish([output]))
        if again:
            repeated = self.work.finish([output])
            assert repeated.outputs == []
            assert repeated.returned == []

    def teardown(self) -> None:
        """The container ends, whatever it was doing."""
        end = self.work.end()
        self.answered([(o.input_id, o.retry_count) for o in end.outputs])
        self.answered(end.unfinished + end.unstarted)
        assert not +self.owed, f"without an answer: {+self.owed}"

    # ── always ────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def what_is_owed_is_held(self) -> None:
        if hasattr(self, "work"):
            assert Counter(self.work.held()) == +self.owed


Container.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True
)
TestContainer = Container.TestCase
