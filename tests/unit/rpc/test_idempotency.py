"""A repeated call gets the first one's answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from modal_proto import api_pb2
from tests.unit.rpc.rpc_harness import SERVICE, FakeClock, call, registry

from homeport.kernel.errors import UnavailableError
from homeport.rpc.context import Context, TaskIdentity
from homeport.rpc.idempotency import Answer, Idempotency
from homeport.rpc.methods import client_service, methods_of
from homeport.rpc.repeatable import ENDS_WITH_CALLER, REPEATABLE
from homeport.transport.dispatch import StatusError

KEY = ("ak-1", "DictPop", "k")


class Work:
    """Counts its runs; each waits for ``go`` if there is one."""

    def __init__(self, size: int = 1, *, go: asyncio.Event | None = None) -> None:
        self.runs = 0
        self.cancelled = 0
        self._size = size
        self._go = go

    async def __call__(self) -> Answer:
        self.runs += 1
        run = self.runs
        if self._go is not None:
            try:
                await self._go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return str(run).encode() * self._size, []


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_later_repeat_gets_the_remembered_answer() -> None:
    async def run() -> None:
        memory, work = Idempotency(FakeClock()), Work()
        first = await memory.run(KEY, work, ends_with_caller=False)
        second = await memory.run(KEY, work, ends_with_caller=False)
        assert first == second
        assert work.runs == 1

    asyncio.run(run())


def test_other_callers_methods_and_keys_are_other_calls() -> None:
    async def run() -> None:
        memory, work = Idempotency(FakeClock()), Work()
        for key in (KEY, ("ak-2", *KEY[1:]), ("ak-1", "DictClear", "k"), (*KEY[:2], "l")):
            await memory.run(key, work, ends_with_caller=False)
        assert work.runs == 4

    asyncio.run(run())


def test_a_repeat_joins_the_running_call() -> None:
    async def run() -> None:
        go = asyncio.Event()
        memory, work = Idempotency(FakeClock()), Work(go=go)
        calls = [
            asyncio.create_task(memory.run(KEY, work, ends_with_caller=False)) for _ in range(3)
        ]
        await settle()
        go.set()
        answers = await asyncio.gather(*calls)
        assert [answer[0] for answer in answers] == [b"1"] * 3

    asyncio.run(run())


@pytest.mark.parametrize("ends_with_caller", [False, True])
def test_a_caller_that_leaves_does_not_disturb_the_other(ends_with_caller: bool) -> None:
    async def run() -> None:
        go = asyncio.Event()
        memory, work = Idempotency(FakeClock()), Work(go=go)
        first, second = (
            asyncio.create_task(memory.run(KEY, work, ends_with_caller=ends_with_caller))
            for _ in range(2)
        )
        await settle()
        first.cancel()
        await settle()
        go.set()
        assert (await second)[0] == b"1"
        assert first.cancelled()

    asyncio.run(run())


def test_abandoned_work_goes_on_and_is_remembered() -> None:
    async def run() -> None:
        go = asyncio.Event()
        memory, work = Idempotency(FakeClock()), Work(go=go)
        caller = asyncio.create_task(memory.run(KEY, work, ends_with_caller=False))
        await settle()
        caller.cancel()
        await settle()
        go.set()
        await settle()
        assert (await memory.run(KEY, work, ends_with_caller=False))[0] == b"1"
        assert work.cancelled == 0

    asyncio.run(run())


def test_work_that_waits_to_take_ends_with_its_last_caller() -> None:
    async def run() -> None:
        go = asyncio.Event()
        memory, work = Idempotency(FakeClock()), Work(go=go)
        caller = asyncio.create_task(memory.run(KEY, work, ends_with_caller=True))
        await settle()
        caller.cancel()
        await settle()
        assert work.cancelled == 1
        go.set()
        assert (await memory.run(KEY, work, ends_with_caller=True))[0] == b"2"

    asyncio.run(run())


def test_failures_are_not_remembered() -> None:
    async def run() -> None:
        memory = Idempotency(FakeClock())
        outcomes: list[Callable[[], Coroutine[Any, Any, Answer]]] = [_fail, Work()]
        with pytest.raises(UnavailableError):
            await memory.run(KEY, outcomes[0], ends_with_caller=False)
        assert (await memory.run(KEY, outcomes[1], ends_with_caller=False))[0] == b"1"

    asyncio.run(run())


async def _fail() -> Answer:
    raise UnavailableError("not now")


def test_answers_are_forgotten_in_time() -> None:
    async def run() -> None:
        clock = FakeClock()
        memory, work = Idempotency(clock, ttl_s=600), Work()
        await memory.run(KEY, work, ends_with_caller=False)
        clock.time += 601
        assert (await memory.run(KEY, work, ends_with_caller=False))[0] == b"2"
        assert len(memory) == 1

    asyncio.run(run())


def test_memory_is_bounded_by_count_and_the_least_recent_goes() -> None:
    async def run() -> None:
        memory, work = Idempotency(FakeClock(), count_max=2), Work()
        one, two, three = (("ak", "M", str(number)) for number in range(3))
        await memory.run(one, work, ends_with_caller=False)
        await memory.run(two, work, ends_with_caller=False)
        await memory.run(one, work, ends_with_caller=False)
        await memory.run(three, work, ends_with_caller=False)
        assert len(memory) == 2
        assert (await memory.run(one, work, ends_with_caller=False))[0] == b"1"
        assert (await memory.run(two, work, ends_with_caller=False))[0] == b"4"

    asyncio.run(run())


def test_memory_is_bounded_by_bytes() -> None:
    async def run() -> None:
        memory, work = Idempotency(FakeClock(), size_bytes_max=2_500), Work(1_000)
        for number in range(5):
            await memory.run(("ak", "M", str(number)), work, ends_with_caller=False)
        assert len(memory) == 2
        assert memory.size_bytes <= 2_500

    asyncio.run(run())


def test_stop_ends_what_still_runs() -> None:
    async def run() -> None:
        memory, work = Idempotency(FakeClock()), Work(go=asyncio.Event())
        caller = asyncio.create_task(memory.run(KEY, work, ends_with_caller=False))
        await settle()
        caller.cancel()
        await settle()
        await memory.stop()
        assert work.cancelled == 1

    asyncio.run(run())


def test_the_reviewed_lists_name_unary_rpcs_of_the_protocol() -> None:
    known = methods_of([client_service()])
    listed = REPEATABLE | ENDS_WITH_CALLER
    assert listed <= set(known)
    assert not [name for name in listed if known[name].is_stream]
    assert not REPEATABLE & ENDS_WITH_CALLER


@pytest.mark.parametrize(
    "name",
    [
        "AppCreate",
        "AppGetOrCreate",
        "DictPop",
        "DictUpdate",
        "QueuePut",
        "QueueGet",
        "FunctionMap",
        "FunctionPutInputs",
        "VolumePutFiles2",
        "EnvironmentGetOrCreate",
        "EnvironmentCreate",
        "SandboxCreate",
        "BlobCreate",
        "FunctionCallPutDataOut",
        "TokenDelete",
    ],
)
def test_calls_that_change_something_are_remembered(name: str) -> None:
    assert name not in REPEATABLE


# ── through the registry ────────────────────────────────────────────────────────────────────


class Dicts:
    """Pops numbers."""

    def __init__(self) -> None:
        self.pops = 0

    async def DictPop(
        self, request: api_pb2.DictPopRequest, ctx: Context
    ) -> api_pb2.DictPopResponse:
        self.pops += 1
        ctx.warn("popped")
        return api_pb2.DictPopResponse(found=True, value=str(self.pops).encode())

    async def DictLen(
        self, request: api_pb2.DictLenRequest, ctx: Context
    ) -> api_pb2.DictLenResponse:
        self.pops += 1
        return api_pb2.DictLenResponse()


def test_the_edge_carries_a_change_out_once_and_repeats_its_warnings() -> None:
    async def run() -> None:
        dicts = Dicts()
        edge = registry(dicts)
        first, second = call("DictPop", "k"), call("DictPop", "k")
        assert await edge.unary(first, b"") == await edge.unary(second, b"")
        assert dicts.pops == 1
        assert first.trailers == second.trailers == [("x-modal-warning", "popped")]

    asyncio.run(run())


def test_the_edge_remembers_nothing_without_a_key_or_for_reads() -> None:
    async def run() -> None:
        dicts = Dicts()
        edge = registry(dicts)
        for incoming in [call("DictPop"), call("DictPop"), *[call("DictLen", "k")] * 2]:
            await edge.unary(incoming, b"")
        assert dicts.pops == 4

    asyncio.run(run())


def test_containers_repeat_their_own_calls_only() -> None:
    async def run() -> None:
        dicts = Dicts()
        edge = registry(dicts)
        metadata = {"x-idempotency-key": "k"}
        for task in ("ta-1", "ta-1", "ta-2"):
            identity = TaskIdentity(task, "ap-1", "main")
            await edge.forwarded_unary(SERVICE + "DictPop", identity, metadata, b"", None, "")
        assert dicts.pops == 2

    asyncio.run(run())


def test_the_answer_of_one_caller_is_not_told_to_strangers() -> None:
    async def run() -> None:
        edge = registry(Dicts())
        await edge.unary(call("DictPop", "k"), b"")
        with pytest.raises(StatusError, match="does not know the token"):
            await edge.unary(call("DictPop", "k", x_modal_token_secret="wrong"), b"")

    asyncio.run(run())


def test_ids_of_what_a_call_creates_follow_its_key() -> None:
    def context(key: str, task: str = "ta-1") -> Context:
        return Context("M", "r", TaskIdentity(task, "ap-1", "main"), "1.6.4", 3, "", key)

    assert context("k").new_id("en") == context("k").new_id("en")
    others = [context("l"), context("k", "ta-2"), context(""), context("")]
    assert len({context("k").new_id("en"), *(other.new_id("en") for other in others)}) == 5
