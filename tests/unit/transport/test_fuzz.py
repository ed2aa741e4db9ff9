"""Bytes of every kind: the server answers or closes, and serves the next connection."""

from __future__ import annotations

import asyncio
import random
import struct

import ngh2
import pytest
from tests.unit.transport.harness import MIB, Client, Recorder, run
from tests.unit.transport.raw_client import GRPC_HEADERS, frame

from homeport.transport.grpc_server import GrpcServer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def conversation(rng: random.Random) -> bytes:
    """The bytes of a sound client that makes a few calls of all kinds at once."""
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection({})
    for _ in range(rng.randint(1, 6)):
        name = rng.choice([b"Echo", b"Count", b"Wait", b"Idle", b"Flood", b"Break", b"Nonsense"])
        headers = [*GRPC_HEADERS, (b":path", b"/t.S/" + name)]
        headers.sort(key=lambda item: not item[0].startswith(b":"))
        stream_id = client.send_request(headers)
        client.send_data(stream_id, frame(b"3"), end_stream=rng.random() < 0.8)
        if rng.random() < 0.3:
            client.reset_stream(stream_id)
        if rng.random() < 0.3:
            client.ping()
    return client.data_to_send()


def mutate(rng: random.Random, data: bytes) -> bytes:
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        position = rng.randrange(len(mutated))
        kind = rng.randrange(4)
        if kind == 0:
            mutated[position] = rng.randrange(256)
        elif kind == 1:
            mutated[position:position] = rng.randbytes(rng.randint(1, 12))
        elif kind == 2:
            del mutated[position : position + rng.randint(1, 12)]
        else:
            mutated += mutated[position : position + 64]
    return bytes(mutated)


def random_frames(rng: random.Random) -> bytes:
    data = PREFACE
    for _ in range(rng.randint(1, 30)):
        payload = rng.randbytes(rng.choice([0, 1, 4, 5, 6, 8, 40, 300]))
        kind = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 200])
        flags = rng.choice([0, 1, 4, 5, 8, 0x20, 255])
        stream_id = rng.choice([0, 0, 1, 1, 2, 3, 5, 2**31 - 1])
        data += len(payload).to_bytes(3, "big") + bytes([kind, flags])
        data += struct.pack(">I", stream_id) + payload
    return data


async def throw(client: Client, rng: random.Random, data: bytes) -> None:
    """Send ``data`` in random pieces, then leave; what the server says is read and ignored."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    try:
        while data and not writer.is_closing():
            size = rng.choice([1, 9, 100, len(data)])
            writer.write(data[:size])
            data = data[size:]
            await asyncio.sleep(0)
        await reader.read(rng.choice([1, 100, MIB]))
    except OSError:
        pass
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_a_client_sends_breaks_the_server(seed: int) -> None:
    async def scenario(recorder: Recorder, server: GrpcServer, client: Client) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            for data in (
                rng.randbytes(rng.randint(1, 400)),
                PREFACE + rng.randbytes(rng.randint(1, 400)),
                random_frames(rng),
                mutate(rng, conversation(rng)),
                conversation(rng),
            ):
                await throw(client, rng, data)
            assert await client.unary("Echo", b"alive") == b"alive"
        while server.connections > 1 or server.running:
            await client.unary("Echo", b"")

    run(scenario)
