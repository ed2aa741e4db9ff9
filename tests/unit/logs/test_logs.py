"""Log streams and history by their RPC handlers, on a real database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2
from tests.unit.feature_home import Home, open_home, run

from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.link.messages import LogEntry
from homeport.logs.model import TASK_COMPLETED, Source, TaskRef
from homeport.logs.rpc import LogRpc
from homeport.logs.stream import RING_ENTRIES_MAX

APP = "ap-1"
SECOND = 10**9


class Subjects:
    """Apps and tasks that exist."""

    def __init__(self) -> None:
        self.apps = {APP, "ap-2"}
        self.tasks = {"ta-1": TaskRef(APP, False), "ta-2": TaskRef(APP, False)}

    def has_app(self, app_id: str) -> bool:
        return app_id in self.apps

    async def task_of_sandbox(self, sandbox_id: str) -> str:
        if sandbox_id != "sb-1":
            raise NotFoundError(f"Sandbox {sandbox_id!r} not found")
        return "ta-1"

    async def find_task(self, task_id: str) -> TaskRef | None:
        return self.tasks.get(task_id)


def lines(texts: Sequence[str], fd: int = 1, time_ns: int = SECOND, **ids: str) -> list[LogEntry]:
    return [LogEntry(fd, time_ns, text, **ids) for text in texts]


class Follower:
    """A client that follows: reads batches until told otherwise."""

    def __init__(
        self,
        home: Home,
        request: api_pb2.AppGetLogsRequest,
        subjects: Subjects | None = None,
    ) -> None:
        rpc = LogRpc(home.logs, subjects or Subjects())
        self.stream: AsyncIterator[api_pb2.TaskLogsBatch] = rpc.AppGetLogs(request, home.context())
        self.entry_id = request.last_entry_id

    async def batch(self) -> api_pb2.TaskLogsBatch:
        batch = await asyncio.wait_for(anext(self.stream), 20)
        self.entry_id = batch.entry_id or self.entry_id
        return batch

    async def lines(self, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            found += [item.data for item in (await self.batch()).items if item.data]
        return found

    async def rest(self) -> tuple[list[str], bool]:
        """All remaining lines, and whether the last batch said that the app is done."""
        found: list[str] = []
        done = False
        async for batch in self.stream:
            assert not done
            self.entry_id = batch.entry_id or self.entry_id
            found += [item.data for item in batch.items if item.data]
            done = batch.app_done
        return found, done


def follow(home: Home, subjects: Subjects | None = None, **options: object) -> Follower:
    options = {"app_id": APP, "timeout": 55, **options}
    return Follower(home, api_pb2.AppGetLogsRequest(**options), subjects)  # type: ignore[arg-type]


async def waiting(task: asyncio.Task[object]) -> bool:
    """Whether ``task`` does not end by itself within some turns of the loop and the database."""
    done, _ = await asyncio.wait([task], timeout=0.1)
    return not done


def test_a_line_is_delivered_as_it_comes_and_the_end_is_told(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.logs.reopen(APP)
        reader = follow(home)
        first = asyncio.create_task(reader.batch())
        assert await waiting(first)
        entry = LogEntry(2, 1_700_000_000_123_456_789, "hello\n", "in-1", "fc-1")
        home.logs.append(APP, "ta-1", "fu-1", [entry])
        batch = await first
        assert (batch.task_id, batch.function_id) == ("ta-1", "fu-1")
        assert batch.entry_id
        (item,) = batch.items
        assert item.data == "hello\n"
        assert item.file_descriptor == api_pb2.FILE_DESCRIPTOR_STDERR
        assert item.timestamp_ns == 1_700_000_000_123_456_789
        assert item.timestamp == pytest.approx(1_700_000_000.123)
        assert (item.input_id, item.function_call_id) == ("in-1", "fc-1")
        home.logs.append(APP, "ta-1", "fu-1", lines(["last\n"]))
        home.logs.finish(APP)
        assert await reader.rest() == (["last\n"], True)

    run(tmp_path, scenario)


def test_a_stream_without_news_ends_after_its_timeout(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.logs.append(APP, "ta-1", "fu-1", lines(["one\n"]))
        reader = follow(home, timeout=0.2)
        assert await reader.rest() == (["one\n"], False)
        assert await follow(home, timeout=0).rest() == (["one\n"], False)
        assert await follow(home, timeout=0, last_entry_id=reader.entry_id).rest() == ([], False)

    run(tmp_path, scenario)


def test_what_a_node_says_again_is_taken_once_also_after_a_restart(tmp_path: Path) -> None:
    async def said(home: Home, text: str, origin: str, seq: int) -> None:
        source = Source(origin, seq)
        assert home.logs.is_new(source)
        assert not home.logs.is_new(source)
        written = home.logs.append(APP, "ta-1", "fu-1", lines([text]), source=source)
        assert written is home.logs.last_write
        assert written is not None
        await written

    async def before(home: Home) -> None:
        await said(home, "one\n", "a life", 1)
        await said(home, "two\n", "a life", 2)
        await said(home, "of another\n", "another", 1)
        found, _ = await follow(home, timeout=0).rest()
        assert found == ["one\n", "two\n", "of another\n"]

    async def after(home: Home) -> None:
        assert not home.logs.is_new(Source("a life", 2))
        await said(home, "three\n", "a life", 3)
        found, _ = await follow(home, timeout=0).rest()
        assert found == ["one\n", "two\n", "of another\n", "three\n"]

    async def much_later(home: Home) -> None:
        home.clock.offset = 8 * 86400.0
        await said(home, "late\n", "another", 2)
        await home.logs.prune()
        await said(home, "again\n", "a life", 1)
        assert not home.logs.is_new(Source("another", 2))

    run(tmp_path, before)
    run(tmp_path, after)
    run(tmp_path, much_later)


def test_readers_are_given_what_would_survive_a_crash(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.logs.reopen(APP)
        reader = follow(home)
        held = threading.Event()
        holding = asyncio.create_task(home.database.write(lambda _connection: held.wait()))
        await asyncio.sleep(0.05)
        home.logs.append(APP, "ta-1", "fu-1", lines(["one\n"]))
        home.logs.finish(APP)
        first = asyncio.create_task(reader.batch())
        assert await waiting(first)
        held.set()
        assert [item.data for item in (await first).items] == ["one\n"]
        assert await reader.rest() == ([], True)
        await holding

    run(tmp_path, scenario)


def test_a_client_resumes_where_it_was_also_after_a_restart(tmp_path: Path) -> None:
    entry_id = ""

    async def before(home: Home) -> None:
        nonlocal entry_id
        home.logs.append(APP, "ta-1", "fu-1", lines(["one\n", "two\n"]))
        reader = follow(home, timeout=0)
        await reader.rest()
        entry_id = reader.entry_id
        home.logs.append(APP, "ta-1", "fu-1", lines(["three\n"]))

    async def after(home: Home) -> None:
        home.logs.reopen(APP)
        home.logs.append(APP, "ta-1", "fu-1", lines(["four\n"]))
        reader = follow(home, last_entry_id=entry_id, timeout=0)
        assert await reader.rest() == (["three\n", "four\n"], False)
        assert int(reader.entry_id) > int(entry_id)
        fresh = follow(home, timeout=0)
        assert (await fresh.rest())[0] == ["one\n", "two\n", "three\n", "four\n"]
        with pytest.raises(InvalidError):
            await follow(home, last_entry_id="x").batch()

    run(tmp_path, before)
    run(tmp_path, after)


def test_a_hundred_thousand_lines_reach_a_fast_and_a_slow_reader(tmp_path: Path) -> None:
    count, chunk = 100_000, 500

    async def scenario(home: Home) -> None:
        home.logs.reopen(APP)
        fast, slow = follow(home), follow(home)
        reading = asyncio.create_task(fast.rest())
        home.logs.append(APP, "ta-1", "fu-1", lines(["0\n"]))
        assert await slow.lines(1) == ["0\n"]  # and then stops reading
        for start in range(1, count, chunk):
            texts = [f"{number}\n" for number in range(start, min(count, start + chunk))]
            home.logs.append(APP, "ta-1", "fu-1", lines(texts))
            await home.logs.drain()
            await asyncio.sleep(0)
        home.logs.finish(APP)
        expected = [f"{number}\n" for number in range(count)]
        assert await reading == (expected, True)
        assert await slow.rest() == (expected[1:], True)
        late = follow(home)  # replays the whole present run
        assert await late.rest() == (expected, True)

    run(tmp_path, scenario)


def test_memory_is_bounded_once_lines_are_recorded(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        follower = follow(home)
        home.logs.append(APP, "ta-1", "fu-1", lines(["x\n"]))
        await follower.batch()
        home.logs.append(APP, "ta-1", "fu-1", lines(["x\n"] * (3 * RING_ENTRIES_MAX)))
        await home.logs.fetch(APP, _everything(), since_ns=0, until_ns=2 * SECOND, limit=1)
        stream = home.logs._streams[APP]  # pyright: ignore[reportPrivateUsage]
        assert len(stream.after(stream.floor, 10**9)) <= RING_ENTRIES_MAX
        assert len(await follower.lines(3 * RING_ENTRIES_MAX)) == 3 * RING_ENTRIES_MAX

    run(tmp_path, scenario)


def _everything():
    from homeport.logs.model import Filter

    return Filter()


def test_batches_do_not_mix_tasks_and_keep_the_order(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.logs.append(APP, "ta-1", "fu-1", lines(["1", "2"]))
        home.logs.append(APP, "ta-2", "fu-1", lines(["3"]))
        home.logs.append(APP, "ta-1", "fu-1", lines(["4"]))
        home.logs.append(APP, "", "", lines(["5"]), image_id="im-1")
        stream = follow(home, timeout=0).stream
        batches = [batch async for batch in stream]
        assert [(b.task_id, b.image_id, [i.data for i in b.items]) for b in batches] == [
            ("ta-1", "", ["1", "2"]),
            ("ta-2", "", ["3"]),
            ("ta-1", "", ["4"]),
            ("", "im-1", ["5"]),
        ]
        resumed = follow(home, timeout=0, last_entry_id=batches[1].entry_id)
        assert (await resumed.rest())[0] == ["4", "5"]

    run(tmp_path, scenario)


FILTERS: list[tuple[dict[str, object], list[str]]] = [
    ({}, ["out", "err", "other task", "variant", "sys\n"]),
    ({"task_id": "ta-2"}, ["other task"]),
    ({"function_id": "fu-1"}, ["out", "err", "variant"]),
    ({"function_id": "fu-1", "parametrized_function_id": "fu-1v"}, ["variant"]),
    ({"function_call_id": "fc-1"}, ["err"]),
    ({"fd": 1}, ["out", "other task", "variant"]),
    ({"fd": 3}, ["sys\n"]),
    ({"search_text": "Ou"}, []),
    ({"search_text": "ou"}, ["out"]),
]


async def write_filtered(home: Home) -> None:
    home.clock.now = lambda: 1.0  # type: ignore[method-assign]
    home.logs.append(APP, "ta-1", "fu-1", lines(["out"]))
    home.logs.append(APP, "ta-1", "fu-1", lines(["err"], fd=2, call_id="fc-1"))
    home.logs.append(APP, "ta-2", "fu-2", lines(["other task"]))
    home.logs.append(APP, "ta-1", "fu-1v", lines(["variant"]), root_function_id="fu-1")
    home.logs.system(APP, "sys")
    home.logs.append("ap-2", "ta-9", "fu-1", lines(["out of another app"]))


@pytest.mark.parametrize(("filter", "expected"), FILTERS)
@pytest.mark.parametrize("restarted", [False, True])
def test_filters(
    tmp_path: Path, filter: dict[str, object], expected: list[str], restarted: bool
) -> None:
    """The same from memory, from the database and in searches of history."""
    streamed = {("file_descriptor" if key == "fd" else key): filter[key] for key in filter}
    searched = {("source" if key == "fd" else key): filter[key] for key in filter}

    async def check(home: Home) -> None:
        assert (await follow(home, timeout=0, **streamed).rest())[0] == expected
        rpc = LogRpc(home.logs, Subjects())
        times = {"since": Timestamp(seconds=0), "until": Timestamp(seconds=10)}
        request = api_pb2.AppFetchLogsRequest(app_id=APP, **times, **searched)  # type: ignore[arg-type]
        answer = await rpc.AppFetchLogs(request, home.context())
        assert [item.data for batch in answer.batches for item in batch.items] == expected
        count = api_pb2.AppCountLogsRequest(app_id=APP, bucket_secs=2, **times, **searched)  # type: ignore[arg-type]
        buckets = (await rpc.AppCountLogs(count, home.context())).buckets
        assert [bucket.bucket_start_at.seconds for bucket in buckets] == [0, 2, 4, 6, 8]
        first = buckets[0]
        assert first.stdout_logs + first.stderr_logs + first.system_logs == len(expected)

    async def main() -> None:
        async with open_home(tmp_path) as home:
            await write_filtered(home)
            if not restarted:
                await check(home)
        if restarted:
            async with open_home(tmp_path) as home:
                await check(home)

    asyncio.run(main())


def test_history_gives_the_newest_in_the_order_of_time(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        rpc = LogRpc(home.logs, Subjects())
        for second in range(10):
            home.logs.append(APP, "ta-1", "fu-1", lines([str(second)], time_ns=second * SECOND))
        request = api_pb2.AppFetchLogsRequest(
            app_id=APP, since=Timestamp(seconds=2), until=Timestamp(seconds=8), limit=3
        )
        answer = await rpc.AppFetchLogs(request, home.context())
        assert [item.data for batch in answer.batches for item in batch.items] == ["5", "6", "7"]
        request.since.FromSeconds(-40 * 86400)
        with pytest.raises(InvalidError, match="35 days"):
            await rpc.AppFetchLogs(request, home.context())

    run(tmp_path, scenario)


def test_counts_are_contiguous_aligned_and_split_by_kind(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        rpc = LogRpc(home.logs, Subjects())
        for fd, second, count in ((1, 5, 2), (2, 5, 1), (3, 13, 4)):
            entries = lines(["x"] * count, fd=fd, time_ns=second * SECOND)
            home.logs.append(APP, "ta-1", "fu-1", entries)
        request = api_pb2.AppCountLogsRequest(
            app_id=APP, since=Timestamp(seconds=5), until=Timestamp(seconds=14), bucket_secs=4
        )
        answer = await rpc.AppCountLogs(request, home.context())
        assert [
            (b.bucket_start_at.seconds, b.stdout_logs, b.stderr_logs, b.system_logs)
            for b in answer.buckets
        ] == [(4, 2, 1, 0), (8, 0, 0, 0), (12, 0, 0, 4)]
        request.bucket_secs = 0
        with pytest.raises(InvalidError):
            await rpc.AppCountLogs(request, home.context())

    run(tmp_path, scenario)


def test_task_states_reach_readers_and_are_not_kept(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.logs.task_state(APP, "ta-1", 4, function_id="fu-1")
        home.logs.task_state(APP, "ta-2", 3)
        home.logs.task_state(APP, "ta-2", TASK_COMPLETED)
        reader = follow(home)
        batch = await reader.batch()
        assert (batch.task_id, batch.function_id, batch.entry_id) == ("ta-1", "fu-1", "")
        (item,) = batch.items
        assert item.task_state == api_pb2.TASK_STATE_ACTIVE
        assert not item.data
        home.logs.progress(APP, "fu-1", 1, 5, "waiting")
        batch = await reader.batch()
        progress = batch.items[0].task_progress
        assert (batch.function_id, progress.pos, progress.len) == ("fu-1", 1, 5)
        assert progress.progress_type == api_pb2.FUNCTION_QUEUED
        stdout_only = follow(home, file_descriptor=1, timeout=0)
        assert [batch async for batch in stdout_only.stream] == []

    run(tmp_path, scenario)


def test_a_stream_of_one_task_ends_with_it(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.logs.append(APP, "ta-1", "fu-1", lines(["mine\n"]))
        home.logs.append(APP, "ta-2", "fu-1", lines(["other\n"]))
        reader = follow(home, app_id="", task_id="ta-1")
        reading = asyncio.create_task(reader.rest())
        assert await waiting(reading)
        home.logs.task_state(APP, "ta-2", TASK_COMPLETED)
        assert await waiting(reading)
        home.logs.append(APP, "ta-1", "fu-1", lines(["end\n"]))
        home.logs.task_state(APP, "ta-1", TASK_COMPLETED)
        assert await reading == (["mine\n", "end\n"], True)
        subjects = Subjects()
        subjects.tasks["ta-2"] = TaskRef(APP, True)
        ended = follow(home, subjects, app_id="", task_id="ta-2")
        assert await ended.rest() == (["other\n"], True)

    run(tmp_path, scenario)


def test_a_redeployed_app_streams_again(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.logs.append(APP, "ta-1", "fu-1", lines(["first\n"]))
        home.logs.finish(APP)
        assert await follow(home).rest() == (["first\n"], True)
        home.logs.reopen(APP)
        reader = follow(home)
        assert await reader.lines(1) == ["first\n"]
        reading = asyncio.create_task(reader.rest())
        assert await waiting(reading)
        home.logs.append(APP, "ta-1", "fu-1", lines(["second\n"]))
        home.logs.finish(APP)
        assert await reading == (["second\n"], True)

    run(tmp_path, scenario)


def test_what_does_not_exist_has_no_logs(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        with pytest.raises(NotFoundError, match="ap-9"):
            await follow(home, app_id="ap-9").batch()
        with pytest.raises(NotFoundError, match="ta-9"):
            await follow(home, app_id="", task_id="ta-9").batch()
        with pytest.raises(NotFoundError, match="sb-9"):
            await follow(home, sandbox_id="sb-9").batch()

    run(tmp_path, scenario)


def test_readers_that_leave_are_forgotten(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        readers = [follow(home) for _ in range(3)]
        tasks = [asyncio.create_task(reader.rest()) for reader in readers]
        assert await waiting(tasks[0])
        stream = home.logs._streams[APP]  # pyright: ignore[reportPrivateUsage]
        assert len(stream.readers) == 3
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert len(stream.readers) == 0

    run(tmp_path, scenario)


def test_old_lines_and_those_beyond_the_size_limit_go(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        day = 86400 * SECOND
        home.clock.now = lambda: 10 * 86400.0  # type: ignore[method-assign]
        for number in range(1, 10):
            home.logs.append(APP, "ta-1", "fu-1", lines(["x" * 100], time_ns=number * day))
        await home.logs.fetch(APP, _everything(), since_ns=0, until_ns=1, limit=1)
        assert await home.logs.prune() == 2  # of days 1 and 2; seven days are kept
        home.logs._bytes_max = 350  # pyright: ignore[reportPrivateUsage]
        assert await home.logs.prune() == 4
        left = await home.logs.fetch(APP, _everything(), since_ns=0, until_ns=10 * day, limit=0)
        assert [entry.time_ns // day for entry in left] == [7, 8, 9]

    run(tmp_path, scenario)


def test_many_idle_apps_do_not_stay_in_memory(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        for number in range(600):
            home.logs.append(f"ap-{number}", "ta-1", "fu-1", lines([f"{number}\n"]))
            await home.logs.fetch(f"ap-{number}", _everything(), since_ns=0, until_ns=1, limit=1)
            await asyncio.sleep(0)
        assert len(home.logs._streams) <= 256  # pyright: ignore[reportPrivateUsage]
        subjects = Subjects()
        subjects.apps.add("ap-0")
        home.logs.finish("ap-0")
        assert await follow(home, subjects, app_id="ap-0").rest() == (["0\n"], True)

    run(tmp_path, scenario)


def test_builds_of_images_are_in_history_by_their_own_id_only(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.logs.append(APP, "bd-1", "", lines(["built"]), image_id="im-1")
        home.logs.append(APP, "ta-1", "fu-1", lines(["ran"]))
        rpc = LogRpc(home.logs, Subjects())

        async def fetched(**fields: str) -> list[str]:
            request = api_pb2.AppFetchLogsRequest(
                app_id=APP, since=Timestamp(seconds=0), until=Timestamp(seconds=5), **fields
            )
            answer = await rpc.AppFetchLogs(request, home.context())
            return [item.data for batch in answer.batches for item in batch.items]

        assert await fetched() == ["ran"]
        assert await fetched(task_id="bd-1") == ["built"]
        follower = Follower(home, api_pb2.AppGetLogsRequest(app_id=APP, timeout=5))
        assert await follower.lines(2) == ["built", "ran"]

    run(tmp_path, scenario)


def test_a_sandbox_s_logs_are_its_task_s(tmp_path: Path) -> None:
    async def check(home: Home) -> None:
        home.logs.append(APP, "ta-1", "", lines(["its own"]))
        home.logs.append(APP, "ta-2", "", lines(["another's"]))
        rpc = LogRpc(home.logs, Subjects())
        times = {"since": Timestamp(seconds=0), "until": Timestamp(seconds=10)}
        request = api_pb2.AppFetchLogsRequest(app_id=APP, sandbox_id="sb-1", **times)
        answer = await rpc.AppFetchLogs(request, home.context())
        assert [item.data for batch in answer.batches for item in batch.items] == ["its own"]
        request.sandbox_id = "sb-2"
        with pytest.raises(NotFoundError):
            await rpc.AppFetchLogs(request, home.context())

    run(tmp_path, check)
