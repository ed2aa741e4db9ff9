"""Container output: order, decoding, bounds, pressure."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from homeport.link.messages import LogEntry
from homeport.node.logs import STDERR, STDOUT, LogOutbox, LogPump


class Sink:
    """Remembers entries; can be congested."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []
        self.is_congested = False
        self.free = asyncio.Event()
        self.got = asyncio.Event()

    def logs(self, task_id: str, entries: list[LogEntry]) -> None:
        self.entries += entries
        self.got.set()

    async def uncongested(self) -> None:
        await self.free.wait()

    def text(self, fd: int) -> str:
        return "".join(entry.data for entry in self.entries if entry.fd == fd)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.got.clear()
                await self.got.wait()


def run(scenario: Callable[[Sink, LogPump, int, int], Awaitable[None]]) -> None:
    """Runs ``scenario`` with a pump on two pipes and their write ends."""

    async def main() -> None:
        sink = Sink()
        pump = LogPump("ta-1", sink, lambda: ("in-1", "fc-1"))
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        pump.add(out_read, STDOUT)
        pump.add(err_read, STDERR)
        try:
            await scenario(sink, pump, out_write, err_write)
        finally:
            os.close(out_write)
            os.close(err_write)
            pump.close()

    asyncio.run(main())


def test_output_arrives_with_its_stream_and_owner() -> None:
    async def scenario(sink: Sink, _pump: LogPump, out: int, err: int) -> None:
        os.write(out, b"hello\n")
        os.write(err, b"oops\n")
        await sink.until(lambda: len(sink.entries) == 2)
        assert {(entry.fd, entry.data) for entry in sink.entries} == {(1, "hello\n"), (2, "oops\n")}
        assert {(entry.input_id, entry.call_id) for entry in sink.entries} == {("in-1", "fc-1")}
        assert all(entry.time_ns > 1e18 for entry in sink.entries)

    run(scenario)


def test_character_split_between_writes_stays_whole() -> None:
    async def scenario(sink: Sink, pump: LogPump, out: int, _err: int) -> None:
        data = "grüß €".encode()
        for byte in data:
            os.write(out, bytes([byte]))
            pump.catch_up()
        assert sink.text(1) == "grüß €"

    run(scenario)


def test_bytes_that_are_no_text_are_replaced() -> None:
    async def scenario(sink: Sink, pump: LogPump, out: int, _err: int) -> None:
        os.write(out, b"a\xffb")
        pump.catch_up()
        assert sink.text(1) == "a\ufffdb"

    run(scenario)


def test_catching_up_reads_what_is_in_the_pipe_now() -> None:
    async def scenario(sink: Sink, pump: LogPump, out: int, _err: int) -> None:
        os.write(out, b"x" * 60_000)
        pump.catch_up()
        assert len(sink.text(1)) == 60_000
        assert max(len(entry.data) for entry in sink.entries) <= 64 * 1024

    run(scenario)


def test_congestion_stops_the_reading_and_its_end_resumes_it() -> None:
    async def scenario(sink: Sink, pump: LogPump, out: int, _err: int) -> None:
        os.set_blocking(out, False)
        sink.is_congested = True
        os.write(out, b"first")
        await sink.until(lambda: sink.text(1) == "first")
        written = os.write(out, b"y" * 70_000)  # more than the pipe holds
        await asyncio.sleep(0.05)
        assert sink.text(1) == "first"
        sink.is_congested = False
        sink.free.set()
        await sink.until(lambda: len(sink.text(1)) == 5 + written)

    run(scenario)


def test_rest_is_read_at_the_end_though_someone_holds_the_pipe_open() -> None:
    async def scenario(sink: Sink, pump: LogPump, out: int, err: int) -> None:
        os.write(out, b"last words")
        os.write(err, b"traceback")
        pump.close()
        assert sink.text(1) == "last words"
        assert pump.stderr_tail == "traceback"

    run(scenario)


def test_tail_keeps_the_last_four_kibibytes() -> None:
    async def scenario(_sink: Sink, pump: LogPump, _out: int, err: int) -> None:
        os.write(err, b"a" * 10_000 + b"the end")
        pump.catch_up()
        assert len(pump.stderr_tail) == 4096
        assert pump.stderr_tail.endswith("the end")

    run(scenario)


def test_what_is_kept_for_the_server_is_numbered_in_order_until_it_has_it() -> None:
    outbox = LogOutbox()
    sent = [outbox.add(task_id, [LogEntry(1, 1, task_id)]) for task_id in ("ta-1", "ta-2", "ta-1")]
    assert [message.seq for message in sent] == [1, 2, 3]
    assert len({message.origin for message in sent}) == 1
    assert outbox.messages() == sent
    outbox.taken(2)
    assert outbox.messages() == sent[2:]
    assert not outbox.is_empty
    outbox.taken(3)
    assert outbox.is_empty
    assert (outbox.messages(), outbox.size) == ([], 0)


def test_what_an_outage_is_too_long_for_is_counted_where_it_is_missing() -> None:
    outbox = LogOutbox(bytes_max=1000)
    for text in ("aaaa", "bbb", "cc", "d"):
        outbox.add("ta-1", [LogEntry(2, 7, text)])
        outbox.add("ta-2", [LogEntry(1, 8, text)])
        outbox.bound("ta-1")
    told = [
        [(entry.fd, entry.data) for entry in message.entries]
        for message in outbox.messages()
        if message.task_id == "ta-1"
    ]
    note = "[7 characters of output were lost while the server was away]\n"
    assert told == [[(3, note), (2, "cc")], [(2, "d")]]
    assert [message.seq for message in outbox.messages()] == [2, 4, 5, 6, 7, 8]
    outbox.taken(8)
    assert outbox.size == 0


def test_many_tasks_share_what_is_kept_in_an_outage() -> None:
    outbox = LogOutbox(bytes_max=5_000, total_bytes_max=10_000)
    for number in range(100):
        for task_id in ("ta-1", "ta-2", "ta-3", "ta-4"):
            outbox.add(task_id, [LogEntry(1, 1, f"{number:03}" * 50)])
            outbox.bound(task_id)
    assert outbox.size <= 10_000
    newest = {message.task_id: message.entries[-1].data for message in outbox.messages()}
    assert newest == dict.fromkeys(newest, "099" * 50)
    assert len(newest) == 4
