"""Deadlines, cancellation, limits, back-pressure and stopping."""

from __future__ import annotations

import asyncio

import grpclib
import pytest
from grpclib.const import Status
from grpclib.exceptions import StreamTerminatedError
from tests.unit.transport.harness import MIB, Client, Recorder, run
from tests.unit.transport.raw_client import RawClient, frame

from homeport.transport import dispatch
from homeport.transport.grpc_server import GrpcServer
from homeport.transport.replies import STREAM_UNSENT_MAX


async def failure(call: object) -> grpclib.GRPCError:
    with pytest.raises(grpclib.GRPCError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def test_unknown_method_is_named() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        error = await failure(client.unary("Nonsense", bytes(5 * MIB)))
        assert error.status is Status.UNIMPLEMENTED
        assert "/t.S/Nonsense" in (error.message or "")
        assert await client.unary("Echo", b"x") == b"x"

    run(scenario)


def test_a_defect_is_internal_without_its_details() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        error = await failure(client.unary("Break", b""))
        assert error.status is Status.INTERNAL
        assert "/t.S/Break" in (error.message or "")
        assert "secret" not in (error.message or "")

    run(scenario)


def test_trailers_of_answers_and_errors() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        async with client.open("Warn") as stream:
            await stream.send_message(b"x", end=True)
            assert await stream.recv_message() == b"x"
            await stream.recv_trailing_metadata()
            assert stream.trailing_metadata["x-modal-warning"] == "careful"
            assert "x-bad" not in stream.trailing_metadata
        failing = client.open("Fail")

        async def fail() -> None:
            async with failing as stream:
                await stream.send_message(b"x", end=True)
                await stream.recv_message()

        await failure(fail())
        assert failing.trailing_metadata["x-why-bin"] == b"\x00\x01\x02"

    run(scenario)


def test_a_stream_may_fail_after_messages() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        got: list[bytes] = []

        async def read() -> None:
            async with client.open("FailAfter") as stream:
                await stream.send_message(b"3", end=True)
                async for message in stream:
                    got.append(message)

        error = await failure(read())
        assert got == [b"0", b"1", b"2"]
        assert error.status is Status.ABORTED
        assert error.message == "änderte sich"

    run(scenario)


def test_the_deadline_ends_the_call_and_its_task() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        raw = await RawClient.connect(client.port)
        answer = await raw.call("Wait", frame(b""), headers={"grpc-timeout": "20m"})
        assert answer.status == dispatch.DEADLINE_EXCEEDED
        assert "0.02 s" in answer.message
        assert await recorder.cancelled.get() == "Wait"
        assert recorder.calls[-1].timeout_s == pytest.approx(0.02)
        answer = await raw.call("Idle", frame(b""), headers={"grpc-timeout": "20000u"})
        assert answer.data == frame(b"first")
        assert answer.status == dispatch.DEADLINE_EXCEEDED
        assert await recorder.cancelled.get() == "Idle"
        answer = await raw.call("Wait", frame(b""), headers={"grpc-timeout": "soon"})
        assert answer.status == dispatch.INVALID_ARGUMENT
        assert "'soon'" in answer.message
        answer = await raw.call("Echo", frame(b"x"), headers={"grpc-timeout": "99999999H"})
        assert answer.data == frame(b"x")
        raw.transport.close()

    run(scenario)


def test_a_deadline_covers_the_upload() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        raw = await RawClient.connect(client.port)
        headers = {"grpc-timeout": "10m"}
        stream_id = raw.send("Echo", frame(b"abc")[:6], end=False, headers=headers)
        answer = raw.answers[stream_id]
        while "grpc-status" not in answer.headers:
            await client.unary("Echo", b"")
        assert answer.status == dispatch.DEADLINE_EXCEEDED
        raw.transport.close()

    run(scenario)


@pytest.mark.parametrize("name", ["Wait", "Idle"])
def test_a_reset_stream_cancels_the_task(name: str) -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        async with client.open(name) as stream:
            await stream.send_message(b"x", end=True)
            await recorder.started.get()
            await stream.cancel()
        assert await recorder.cancelled.get() == name
        assert await client.unary("Echo", b"x") == b"x"

    run(scenario)


def test_a_lost_connection_cancels_all_its_tasks() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        calls = [asyncio.ensure_future(client.unary("Wait", b"")) for _ in range(20)]
        for _ in calls:
            await recorder.started.get()
        client.channel.close()
        for _ in calls:
            await recorder.cancelled.get()
        await asyncio.gather(*calls, return_exceptions=True)

    run(scenario)


def test_thousands_of_cancelled_calls_do_not_cost_the_connection() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        survivor = asyncio.ensure_future(client.unary("Wait", b"ok"))
        await recorder.started.get()
        for _ in range(3):
            calls = [asyncio.ensure_future(client.unary("Wait", b"")) for _ in range(1000)]
            for _ in calls:
                await recorder.started.get()
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            for _ in calls:
                await recorder.cancelled.get()
        recorder.release.set()
        assert await survivor == b"ok"

    run(scenario)


@pytest.mark.parametrize("size", [MIB + 1, 40 * MIB])
def test_a_message_over_the_limit(size: int) -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        assert await client.unary("Length", bytes(MIB)) == str(MIB).encode()
        error = await failure(client.unary("Length", bytes(size)))
        assert error.status is Status.INVALID_ARGUMENT  # clients retry RESOURCE_EXHAUSTED for ever
        assert f"{MIB} bytes (1 MiB; status = '413')" in (error.message or "")
        assert await client.unary("Echo", b"x") == b"x"

    run(scenario, message_bytes_max=MIB)


def test_unfinished_requests_of_a_connection_are_bounded() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        raw = await RawClient.connect(client.port)
        body = frame(bytes(2 * MIB))
        held = raw.send("Length", body[: MIB + MIB // 2], end=False)
        answer = await raw.call("Length", frame(bytes(MIB)))
        assert answer.status == dispatch.RESOURCE_EXHAUSTED
        assert "2 MiB" in answer.message
        assert (await raw.call("Echo", frame(b"small fits"))).status == 0
        raw.http2.send_data(held, body[MIB + MIB // 2 :], end_stream=True)
        raw.flush()
        await raw.answers[held].closed.wait()
        assert raw.answers[held].data == frame(str(2 * MIB).encode())
        for _ in range(4):
            assert (await raw.call("Length", frame(bytes(MIB)))).status == 0
        raw.transport.close()

    run(scenario, message_bytes_max=2 * MIB, inbound_bytes_max=2 * MIB)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (frame(b"x", flag=1), dispatch.UNIMPLEMENTED, "gzip"),
        (frame(b"x") + b"y", dispatch.UNIMPLEMENTED, "stream of requests"),
        (frame(b"x") + frame(b"x"), dispatch.UNIMPLEMENTED, "one request"),
        (frame(b"xx")[:-1], dispatch.INVALID_ARGUMENT, "1 of 2 bytes"),
        (b"\x00\x00", dispatch.INVALID_ARGUMENT, "cut off"),
        (b"", dispatch.INVALID_ARGUMENT, "no message"),
        (None, dispatch.INVALID_ARGUMENT, "no message"),
    ],
    ids=["compressed", "trailing", "second", "short", "half-prefix", "empty", "none"],
)
def test_bodies_that_are_not_one_plain_message(body: bytes | None, status: int, word: str) -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        raw = await RawClient.connect(client.port)
        answer = await raw.call("Echo", body, headers={"grpc-encoding": "gzip"})
        assert answer.status == status
        assert word in answer.message
        assert (await raw.call("Echo", frame(b"x"))).data == frame(b"x")
        raw.transport.close()

    run(scenario)


def test_a_message_in_many_frames() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        raw = await RawClient.connect(client.port)
        body = frame(bytes(range(256)) * 20)
        stream_id = raw.send("Echo", body[:1], end=False)
        for index in range(1, len(body)):
            raw.flush()
            raw.http2.send_data(stream_id, body[index : index + 1])
        raw.http2.end_stream(stream_id)
        raw.flush()
        await raw.answers[stream_id].closed.wait()
        assert raw.answers[stream_id].data == body
        raw.transport.close()

    run(scenario)


def test_requests_that_are_not_grpc() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        raw = await RawClient.connect(client.port)
        answer = await raw.call("Echo", None, headers={":method": "GET"})
        assert answer.headers[":status"] == "405"
        answer = await raw.call("Echo", b"{}", headers={"content-type": "application/json"})
        assert answer.headers[":status"] == "415"
        raw.transport.close()

    run(scenario)


def test_a_request_reset_in_the_packet_it_came_in() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        raw = await RawClient.connect(client.port)
        for name in ("Echo", "Nonsense", "Wait", "Idle"):
            for body in (None, frame(b"x")):
                stream_id = raw.send(name, body, flush=False)
                packet = raw.http2.data_to_send()
                raw.http2.reset_stream(stream_id)
                raw.transport.write(packet + raw.http2.data_to_send())
        assert (await raw.call("Echo", frame(b"x"))).data == frame(b"x")
        raw.transport.close()

    run(scenario)


def test_a_stream_is_pulled_only_as_fast_as_it_is_read() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        async with client.open("Flood") as stream:
            await stream.send_message(b"", end=True)
            seen = -1
            while recorder.pulled != seen:  # until it stands still
                seen = recorder.pulled
                for _ in range(200):
                    await client.unary("Echo", b"other calls go on")
            # the client's window, what may be unsent, and the buffers of socket and transport
            assert 2 <= seen < 1 + STREAM_UNSENT_MAX // MIB + 8
            for _ in range(100):
                assert len(await stream.recv_message()) == MIB
            assert recorder.pulled >= 100
            await stream.cancel()
        while recorder.closed_streams == 0:
            await client.unary("Echo", b"")
        assert recorder.pulled < 120

    # grpclib's two windows are equal by default: an unread stream would block the others
    run(scenario, client={"http2_stream_window_size": MIB})


def test_a_fast_reader_gets_the_whole_flood() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        count = 0
        async with client.open("Flood") as stream:
            await stream.send_message(b"", end=True)
            async for message in stream:
                assert len(message) == MIB
                count += 1
                if count == 200:
                    await stream.cancel()
                    break
        assert count == 200

    run(scenario)


def test_keepalive_pings_of_an_idle_connection_are_answered() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        assert await client.unary("Echo", b"x") == b"x"
        protocol = client.channel._protocol
        assert protocol is not None
        acknowledged = 0
        process = protocol.connection.ping_ack_process

        done = asyncio.Event()

        def count() -> None:
            nonlocal acknowledged
            acknowledged += 1
            process()
            if acknowledged == 10:
                done.set()

        protocol.connection.ping_ack_process = count  # type: ignore[method-assign]
        await done.wait()
        assert await client.unary("Echo", b"y") == b"y"
        assert client.channel._protocol is protocol  # never had to reconnect

    run(
        scenario,
        client={
            "_keepalive_time": 0.01,
            "_keepalive_timeout": 5,
            "_keepalive_permit_without_calls": True,
            "_http2_max_pings_without_data": 0,
            "_http2_min_sent_ping_interval_without_data": 0.001,
        },
    )


def test_stop_ends_what_waits_and_lets_calls_finish() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        call = asyncio.ensure_future(client.unary("Wait", b"done"))
        poll = asyncio.ensure_future(client.unary("Poll", b""))
        stream = asyncio.ensure_future(client.stream("Idle", b""))
        for _ in range(3):
            await recorder.started.get()
        stopping = asyncio.ensure_future(server.stop(30))
        for waiting in (poll, stream):
            error = await failure(waiting)
            assert error.status is Status.UNAVAILABLE
            assert "stopping" in (error.message or "")
        late = await failure(client.unary("Echo", b""))
        assert late.status is Status.UNAVAILABLE
        assert not call.done()
        recorder.release.set()
        assert await call == b"done"
        await stopping
        assert server.connections == 0

    run(scenario)


def test_stop_ends_calls_after_the_grace() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        call = asyncio.ensure_future(client.unary("Wait", b""))
        await recorder.started.get()
        await server.stop(0.05)
        assert await recorder.cancelled.get() == "Wait"
        with pytest.raises((grpclib.GRPCError, StreamTerminatedError)) as caught:
            await call
        assert isinstance(caught.value, grpclib.GRPCError)
        assert caught.value.status is Status.UNAVAILABLE

    run(scenario)


def test_stop_sends_large_answers_to_their_end() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        size = 32 * MIB
        call = asyncio.ensure_future(client.unary("Make", str(size).encode()))
        await recorder.started.get()
        await server.stop(30)
        assert len(await call) == size

    run(scenario)
