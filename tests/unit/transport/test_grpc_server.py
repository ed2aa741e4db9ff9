"""RPCs over the transport as grpclib, the official client's library, sees them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpclib
import pytest
from grpclib.const import Status
from tests.unit.transport.harness import MIB, Client, Recorder, run

from homeport.transport.grpc_server import GrpcServer


def test_unary_answers_with_the_message() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        assert await client.unary("Echo", b"hello") == b"hello"
        assert await client.unary("Echo", b"") == b""
        reply = await client.unary("Echo", b"x", metadata={"x-modal-client-version": "1.6.4"})
        assert reply == b"x"
        call = recorder.calls[-1]
        assert call.path == "/t.S/Echo"
        assert call.metadata["x-modal-client-version"] == "1.6.4"
        assert call.metadata[":authority"].startswith("127.0.0.1")
        assert call.peer.startswith("127.0.0.1:")

    run(scenario)


def test_unix_socket(tmp_path: Path) -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        assert await client.unary("Echo", b"hello") == b"hello"
        assert await client.stream("Count", b"3") == [b"0", b"1", b"2"]

    run(scenario, unix=tmp_path / "s.sock")


def test_stream_answers_with_all_messages() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        assert await client.stream("Count", b"500") == [str(n).encode() for n in range(500)]
        assert await client.stream("Count", b"0") == []

    run(scenario)


def test_large_messages_both_ways() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        body = bytes(100 * MIB)
        assert await client.unary("Length", body) == str(len(body)).encode()
        assert len(await client.unary("Make", str(100 * MIB).encode())) == 100 * MIB

    run(scenario)


def test_a_thousand_calls_at_once() -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        bodies = [str(n).encode() for n in range(1000)]
        waiting = [asyncio.ensure_future(client.unary("Wait", body)) for body in bodies]
        for _ in bodies:
            await recorder.started.get()
        recorder.release.set()
        assert await asyncio.gather(*waiting) == bodies

    run(scenario)


@pytest.mark.parametrize(
    "message", ["no such app", "keine Größe – 100 %\n「終」", "", "x" * 100_000]
)
def test_errors_carry_status_and_message(message: str) -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        with pytest.raises(grpclib.GRPCError) as caught:
            await client.unary("Fail", message.encode())
        assert caught.value.status is Status.NOT_FOUND
        got = caught.value.message or ""
        if len(message) < 1000:
            assert got == message
        else:
            assert got.endswith("…")
            assert message.startswith(got[:-1])
        assert await client.unary("Echo", b"still there") == b"still there"

    run(scenario)
