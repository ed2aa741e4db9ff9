"""Unary RPCs over this transport against a grpclib server, in one run.

    python benchmarks/transport.py [--seconds 2] [--payload 120]

Each server runs in a process of its own, under uvloop, and echoes raw bytes. It is driven by
grpclib (what the official client uses) with one call and with 64 calls in flight, and by a bare
HTTP/2 client that leaves the server as the limit. Rounds of the two servers alternate. Prints one
JSON object: calls a second, latency and the server's CPU time per call, and the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import struct
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection as Pipe
from typing import Any, cast

import grpclib.client
import grpclib.const
import grpclib.server
import ngh2
import uvloop

from homeport.transport.dispatch import IncomingCall
from homeport.transport.grpc_server import GrpcServer

PATH = "/bench.Echo/Echo"
ROUNDS = 3


class RawCodec:
    """Messages of grpclib as plain bytes."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return message

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class Echo:
    """The dispatcher of the homeport server."""

    def is_stream(self, path: str) -> bool | None:
        return False if path == PATH else None

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        return body

    def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        raise NotImplementedError


class GrpclibEcho:
    """The handler of the grpclib server."""

    async def _echo(self, stream: Any) -> None:
        await stream.send_message(await stream.recv_message())

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        unary = grpclib.const.Cardinality.UNARY_UNARY
        return {PATH: grpclib.const.Handler(self._echo, unary, bytes, bytes)}


def serve(kind: str, pipe: Pipe) -> None:
    """Process of a server: says its port, then answers each request for its CPU seconds."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server: Any
        if kind == "homeport":
            server = await loop.create_server(GrpcServer(Echo()).protocol_factory, "127.0.0.1", 0)
            sockets = server.sockets
        else:
            server = grpclib.server.Server([GrpclibEcho()], codec=cast(Any, RawCodec()))
            await server.start("127.0.0.1", 0)
            sockets = server._server.sockets
        pipe.send(sockets[0].getsockname()[1])
        ended = asyncio.Event()

        def on_pipe() -> None:
            try:
                pipe.recv()
                pipe.send(time.process_time())
            except EOFError:
                ended.set()

        loop.add_reader(pipe.fileno(), on_pipe)
        await ended.wait()

    uvloop.run(main())


class BareClient(asyncio.Protocol):
    """Keeps a number of calls in flight with as little work per call as possible."""

    def __init__(self, body: bytes, in_flight: int, deadline: float) -> None:
        self._http2 = ngh2.Connection(
            ngh2.Role.CLIENT, ngh2.Configuration(peer_max_concurrent_streams=1000)
        )
        self._body = struct.pack(">BI", 0, len(body)) + body
        self._in_flight = in_flight
        self._deadline = deadline
        self._started: dict[int, float] = {}
        self._headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", PATH.encode()),
            (b":authority", b"bench"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        ]
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._http2.initiate_connection({})
        for _ in range(self._in_flight):
            self._call()
        self._transport.write(self._http2.data_to_send())

    def _call(self) -> None:
        stream_id = self._http2.send_request(self._headers)
        self._http2.send_data(stream_id, self._body, end_stream=True)
        self._started[stream_id] = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        self._http2.receive_data(data)
        now = time.perf_counter()
        for event in self._http2.events():
            if type(event) is ngh2.StreamClosed:
                self.latencies.append(now - self._started.pop(event.stream_id))
                if now < self._deadline:
                    self._call()
        self._transport.write(self._http2.data_to_send())
        self._http2.events()
        if not self._started and not self.done.done():
            self.done.set_result(None)


async def drive_bare(port: int, body: bytes, in_flight: int, seconds: float) -> list[float]:
    deadline = time.perf_counter() + seconds
    _, client = await asyncio.get_running_loop().create_connection(
        lambda: BareClient(body, in_flight, deadline), "127.0.0.1", port
    )
    await client.done
    client._transport.close()
    return client.latencies


async def drive_grpclib(port: int, body: bytes, in_flight: int, seconds: float) -> list[float]:
    channel = grpclib.client.Channel("127.0.0.1", port, codec=cast(Any, RawCodec()))
    echo = grpclib.client.UnaryUnaryMethod(channel, PATH, bytes, bytes)
    latencies: list[float] = []
    deadline = time.perf_counter() + seconds

    async def worker() -> None:
        while (start := time.perf_counter()) < deadline:
            assert await echo(body) == body
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    channel.close()
    return latencies


LOADS = {
    "grpclib client, 1 in flight": (drive_grpclib, 1),
    "grpclib client, 64 in flight": (drive_grpclib, 64),
    "bare client, 1 in flight": (drive_bare, 1),
    "bare client, 64 in flight": (drive_bare, 64),
}


class Server:
    """A server process."""

    def __init__(self, kind: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(kind, theirs))
        self._process.start()
        theirs.close()
        self.port: int = self._pipe.recv()

    def cpu_s(self) -> float:
        self._pipe.send(None)
        return self._pipe.recv()

    def stop(self) -> None:
        self._pipe.close()
        self._process.join()


def measure(server: Server, load: str, body: bytes, seconds: float) -> dict[str, float]:
    drive, in_flight = LOADS[load]
    uvloop.run(drive(server.port, body, in_flight, min(seconds, 0.2)))  # warm up
    cpu = server.cpu_s()
    start = time.perf_counter()
    latencies = uvloop.run(drive(server.port, body, in_flight, seconds))
    took = time.perf_counter() - start
    cpu = server.cpu_s() - cpu
    cuts = statistics.quantiles(latencies, n=100)
    return {
        "calls_per_s": round(len(latencies) / took, 1),
        "p50_us": round(cuts[49] * 1e6, 1),
        "p99_us": round(cuts[98] * 1e6, 1),
        "server_cpu_us": round(cpu / len(latencies) * 1e6, 1),
    }


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="per load, server and round")
    parser.add_argument("--payload", type=int, default=120, help="bytes of a message")
    options = parser.parse_args()
    body = os.urandom(options.payload)
    servers = {kind: Server(kind) for kind in ("homeport", "grpclib")}
    result: dict[str, Any] = {
        "benchmark": "transport",
        "payload_bytes": options.payload,
        "seconds": options.seconds,
        "rounds": ROUNDS,
        "loads": {},
    }
    try:
        for load in LOADS:
            rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in servers}
            for _ in range(ROUNDS):
                for kind, server in servers.items():
                    rounds[kind].append(measure(server, load, body, options.seconds / ROUNDS))
            figures: dict[str, Any] = {kind: middle(rounds[kind]) for kind in servers}
            ours, peer = figures["homeport"], figures["grpclib"]
            figures["ratio"] = {
                "calls_per_s": round(ours["calls_per_s"] / peer["calls_per_s"], 2),
                "server_cpu_us": round(ours["server_cpu_us"] / peer["server_cpu_us"], 2),
            }
            result["loads"][load] = figures
    finally:
        for server in servers.values():
            server.stop()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
