"""Sends hostile requests for every RPC to a server and says what it should not have done.

``python -m tests.chaos.fuzzing --seed 1 --requests 200000`` runs it on a server of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError, Message
from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.exceptions import ProtocolError
from tests.chaos.hostile import Hostile, Pool
from tests.chaos.world import METHODS, build
from tests.conformance.harness.bare import BareServer
from tests.conformance.harness.lossy import RawCodec
from tests.conformance.harness.server import Server

from homeport.rpc.handlers import HANDLER_CLASSES
from homeport.rpc.methods import Method, handler_names
from homeport.transport import dispatch

ANSWERED: Final = {name for kind in HANDLER_CLASSES for name in handler_names(kind)}
WAITING: Final = frozenset(
    {
        "AppGetLogs",
        "FunctionCallGetDataOut",
        "FunctionGetOutputs",
        "ImageGetOrCreate",
        "ImageJoinStreaming",
        "QueueGet",
        "QueueNextItems",
        "ContainerExecGetOutput",
        "ContainerExecWait",
        "ContainerFilesystemExecGetOutput",
        "SandboxCreate",
        "SandboxCreateV2",
        "SandboxGetLogs",
        "SandboxGetTaskId",
        "SandboxGetTaskIdV2",
        "SandboxWait",
        "SandboxWaitUntilReady",
        "SandboxWaitV2",
        "TokenFlowWait",
    }
)
"""Reviewed: these wait for something to happen, so their time may pass. All others must answer."""
DESTRUCTIVE: Final = re.compile("Stop|Disconnect|Delete|Cancel|Clear|Finish|Disable|Rename")
ALL: Final = sorted(METHODS)
FREQUENT: Final = sorted(name for name in ANSWERED if not DESTRUCTIVE.search(name))
"""Most requests are of these, lest there be nothing left to find fault with."""
POLL_S: Final = 0.25
ANSWER_S: Final = 30.0
"""An RPC that does not wait has that long on a busy machine."""
AT_ONCE: Final = 64
_STATUS_OF_DEFECTS: Final = frozenset({dispatch.UNKNOWN, dispatch.INTERNAL, dispatch.DATA_LOSS})
_MIB: Final = 1024 * 1024
MEMORY_BYTES_MAX: Final = 600 * _MIB
"""The server's memory after any number of requests; much of it is what they made it keep."""


@dataclass(slots=True)
class Report:
    """What a run gave."""

    statuses: Counter[int] = field(default_factory=Counter[int])
    answered: Counter[str] = field(default_factory=Counter[str])
    """How often each RPC answered OK."""
    defects: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        found = "\n".join(_of_each_kind(self.defects)) or "no defect"
        return f"{sum(self.statuses.values())} requests, by status {dict(self.statuses)}\n{found}"


def _of_each_kind(defects: Sequence[str]) -> list[str]:
    """The first of those that say the same but for numbers and names."""
    kinds: dict[str, str] = {}
    for text in defects:
        is_log = text.startswith("the server's log")
        kinds.setdefault(text[-60:] if is_log else text.partition(",")[0], text)
    return list(kinds.values())[:60]


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to be sent."""

    number: int
    method: Method
    body: bytes
    metadata: Mapping[str, str]
    is_cut: bool
    """The caller goes away before the answer."""


class Fuzzer:
    """Sends ``count`` requests of ``seed`` to ``port``, ``AT_ONCE`` at a time."""

    def __init__(
        self, port: int, metadata: Mapping[str, str], seed: str, *, has_node: bool
    ) -> None:
        self._has_node = has_node
        self._port = port
        self._metadata = metadata
        self._seed = seed
        self._pool = Pool(metadata)
        self._channels: list[Channel] = []
        self._sound: dict[str, list[Message]] = {}
        self.report = Report()

    async def run(self, numbers: Sequence[int]) -> Report:
        """Send the requests with these numbers."""
        try:
            for number, batch in enumerate(_batched(numbers)):
                if number % 8 == 0:
                    await self._build_world()
                self._channels = [
                    Channel("127.0.0.1", self._port, codec=RawCodec()) for _ in range(3)
                ]
                await asyncio.gather(*(self._send(self._request(number)) for number in batch))
                for channel in self._channels:
                    channel.close()
        finally:
            for channel in self._channels:
                channel.close()
        return self.report

    async def _build_world(self) -> None:
        """So that requests have something to name."""
        channel = Channel("127.0.0.1", self._port, codec=RawCodec())

        async def call(name: str, message: Any) -> Any:
            self._sound.setdefault(name, []).append(message)
            body = message.SerializeToString()
            request = Request(-1, METHODS[name], body, self._metadata, False)
            *_, answer = await self._answers(channel, request, ANSWER_S * 4)
            answer = request.method.response.FromString(answer)
            self._pool.take(answer)
            return answer

        self._sound.clear()
        try:
            await build(call, has_node=self._has_node)
        except (GRPCError, TimeoutError, OSError, StreamTerminatedError) as error:
            self.report.defects.append(f"a sound request fails: {error!r}")
        finally:
            channel.close()

    def _request(self, number: int) -> Request:
        seed = f"{self._seed} {number}"
        choice = random.Random(f"{seed} method")
        names = ALL if choice.random() < 0.08 else FREQUENT
        method = METHODS[choice.choice(names)]
        hostile = Hostile(seed, self._pool, poll_s=POLL_S)
        sound = self._sound.get(method.name)
        body = hostile.request(method, choice.choice(sound) if sound else None)
        metadata = hostile.metadata(self._metadata)
        return Request(number, method, body, metadata, choice.random() < 0.03)

    async def _send(self, request: Request) -> None:
        channel = self._channels[request.number % len(self._channels)]
        started = time.monotonic()
        seconds = POLL_S if request.method.name in WAITING else ANSWER_S
        try:
            answers = await self._answers(channel, request, seconds)
        except GRPCError as error:
            self._note(request, error.status.value, error.message or "")
        except TimeoutError:
            self._note(request, dispatch.DEADLINE_EXCEEDED, "")
        except (StreamTerminatedError, OSError) as error:
            if not request.is_cut:
                self._defect(
                    request,
                    f"lost its connection ({error}) after {time.monotonic() - started:.1f} s",
                )
        else:
            self._note(request, dispatch.OK, "")
            self._take(request, answers)

    async def _answers(self, channel: Channel, request: Request, seconds: float) -> list[bytes]:
        method = request.method
        cardinality = Cardinality.UNARY_STREAM if method.is_stream else Cardinality.UNARY_UNARY
        answers: list[bytes] = []
        async with channel.request(
            method.path, cardinality, bytes, bytes, timeout=seconds, metadata=request.metadata
        ) as stream:
            await stream.send_message(request.body, end=True)
            if request.is_cut:
                await _cut(stream)
                raise StreamTerminatedError("cut")
            async for message in stream:
                answers.append(message)
                if len(answers) >= 20:
                    await _cut(stream)
                    break
        return answers

    def _take(self, request: Request, answers: Sequence[bytes]) -> None:
        self.report.answered[request.method.name] += 1
        for answer in answers:
            try:
                self._pool.take(request.method.response.FromString(answer))
            except DecodeError:
                self._defect(request, "answered with something else than its message")

    def _note(self, request: Request, status: int, message: str) -> None:
        self.report.statuses[status] += 1
        if status in _STATUS_OF_DEFECTS:
            self._defect(request, f"gave status {status}: {message}")
        elif status == dispatch.DEADLINE_EXCEEDED and request.method.name not in WAITING:
            self._defect(request, f"did not answer within {ANSWER_S} s")
        elif status not in (dispatch.OK, dispatch.DEADLINE_EXCEEDED) and not message:
            self._defect(request, f"gave status {status} without a sentence")

    def _defect(self, request: Request, what: str) -> None:
        body = base64.b64encode(request.body[:3000]).decode()
        self.report.defects.append(
            f"{request.method.name} {what}\n  seed {self._seed!r} number {request.number}, "
            f"body (base64) {body or 'empty'}"
        )


async def _cut(stream: Any) -> None:
    with contextlib.suppress(ProtocolError):  # it has ended by itself
        await stream.cancel()


def _batched(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), AT_ONCE):
        yield numbers[start : start + AT_ONCE]


def metadata_of(server: BareServer | Server) -> dict[str, str]:
    """What a sound client with the server's token says."""
    known = server.environment()
    return {
        "x-modal-client-version": "1.6.4",
        "x-modal-client-type": "1",
        "x-modal-token-id": known["MODAL_TOKEN_ID"],
        "x-modal-token-secret": known["MODAL_TOKEN_SECRET"],
    }


def memory_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def fuzz(server: BareServer | Server, seed: str, count: int) -> Report:
    """Send ``count`` hostile requests to a running server, then see how it is."""
    port = int(server.url.rpartition(":")[2])
    log = len(server.log.read_bytes())
    has_node = isinstance(server, Server)
    fuzzer = Fuzzer(port, metadata_of(server), seed, has_node=has_node)
    report = asyncio.run(fuzzer.run(range(count)))
    report.defects.extend(said(server.log.read_bytes()[log:]))
    memory = memory_bytes(server.pid)
    if memory > MEMORY_BYTES_MAX:
        report.defects.append(f"the server has {memory // _MIB} MiB of memory")
    if problem := sound_call(server):
        report.defects.append(f"afterwards a sound program fails:\n{problem}")
    return report


def said(log: bytes) -> Iterator[str]:
    """Errors in the server's log: it met what it did not expect."""
    for line in log.decode(errors="replace").splitlines():
        if '"level": "error"' in line or "Traceback" in line:
            at = line.find("Traceback")
            yield f"the server's log: {line[:150]} … {line[at:][-700:] if at >= 0 else line[:900]}"


_SOUND: Final = """
import modal
with modal.Dict.ephemeral() as kept, modal.Queue.ephemeral() as line:
    kept["key"] = "value"
    line.put(kept["key"])
    assert line.get() == "value"
"""


def sound_call(server: BareServer | Server) -> str:
    """What goes wrong in a program of the official client; empty if nothing does."""
    done = subprocess.run(
        [sys.executable, "-c", _SOUND],
        env={**server.environment(), "MODAL_CONFIG_PATH": "/nonexistent", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stderr if done.returncode else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--node", action="store_true", help="with a node, which runs containers")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = chosen.home or Path(folder) / "home"
        server = Server(home) if chosen.node else BareServer(home)
        server.start()
        try:
            started = time.monotonic()
            report = fuzz(server, chosen.seed, chosen.requests)
            seconds = time.monotonic() - started
        finally:
            server.stop()
    print(report)
    rest: dict[str, Any] = {
        "seconds": round(seconds, 1),
        "never_ok": sorted(ANSWERED - set(report.answered)),
    }
    print(json.dumps(rest))
    sys.exit(bool(report.defects))


if __name__ == "__main__":
    main()
