"""A server's end of the link, and a runtime without isolation, for tests of the node."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from modal_proto import api_pb2

from homeport.kernel import ids
from homeport.kernel.clock import SystemClock
from homeport.kernel.resources import Limits, Resources
from homeport.link.framing import FrameProtocol
from homeport.link.messages import (
    Ack,
    DeliverInputs,
    Hello,
    InputItem,
    LogEntry,
    Logs,
    LogsTaken,
    Message,
    NodeMessage,
    OutputItem,
    Outputs,
    Ping,
    RpcReply,
    RpcRequest,
    ServerMessage,
    StartTask,
    Welcome,
)
from homeport.node.isolation import Isolation
from homeport.node.link import NodeLink
from homeport.node.prepare import Preparer
from homeport.node.runtime.port import Container, ContainerSpec, Exit, RuntimeUnavailableError
from homeport.node.supervisor import Supervisor
from homeport.node.templates.pool import Templates

M = TypeVar("M", bound=Message)
PROGRAMS = Path(__file__).parent / "programs"
WAIT_S = 30.0


# ── the runtime ───────────────────────────────────────────────────────────────────────────────


class PlainContainer:
    """A container that is only a process group."""

    def __init__(self, id_: str, process: asyncio.subprocess.Process) -> None:
        self._id = id_
        self._process = process
        self.removed = False
        self.env: dict[str, str] = {}
        self.memory = 0
        self.signals: list[int] = []

    @property
    def id(self) -> str:
        return self._id

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def address(self) -> str:
        return ""

    @property
    def netns(self) -> str:
        return ""

    async def freeze(self) -> None:
        raise RuntimeUnavailableError("it is a plain process")

    async def thaw(self) -> None:
        raise RuntimeUnavailableError("it is a plain process")

    def memory_bytes(self) -> int:
        return self.memory

    def usage(self) -> tuple[float, int]:
        return 0.0, 0

    def adopt(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)

    async def wait(self) -> Exit:
        code = await self._process.wait()
        self._kill_group()
        return Exit(code, False)

    def signal(self, number: int) -> None:
        self.signals.append(number)
        if self._process.returncode is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        self._kill_group()

    async def remove(self, *, keep_upper: bool = False) -> None:
        self._kill_group()
        await self._process.wait()
        self.removed = True

    def _kill_group(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class PlainRuntime:
    """Starts commands as plain processes, with paths of the container mapped to the host's."""

    name = "plain"

    def __init__(self) -> None:
        self.containers: list[PlainContainer] = []
        self.specs: list[ContainerSpec] = []
        self.error: Exception | None = None

    async def start(self, spec: ContainerSpec) -> PlainContainer:
        if self.error is not None:
            raise self.error
        self.specs.append(spec)
        spec.upper.mkdir(parents=True)
        env = dict(spec.env)
        for bind in spec.binds:
            env = {k: v.replace(bind.target, str(bind.source)) for k, v in env.items()}
        paths = [str(layer / part) for layer in spec.layers for part in ("root", "pkg")]
        env["PYTHONPATH"] = ":".join([str(PROGRAMS), *paths])
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        command = [sys.executable if word == "python" else word for word in spec.command]
        for bind in spec.binds:
            command = [word.replace(bind.target, str(bind.source)) for word in command]
        process = await asyncio.create_subprocess_exec(
            *command,
            env=env,
            cwd=spec.upper,
            stdin=spec.stdin_fd if spec.stdin_fd >= 0 else asyncio.subprocess.DEVNULL,
            stdout=spec.stdout_fd,
            stderr=spec.stderr_fd,
            start_new_session=True,
        )
        container = PlainContainer(spec.id, process)
        self.containers.append(container)
        return container

    async def sweep(self) -> int:
        return 0


class NoLayers:
    """An image store where every layer exists."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        return self._root / key

    def has(self, key: str) -> bool:
        return True

    def pin(self, keys: object) -> None:
        return

    def unpin(self, keys: object) -> None:
        return


class NoMounts:
    async def layer(self, digest: str) -> Path:
        raise AssertionError(f"mount {digest} was not expected")


# ── the server ────────────────────────────────────────────────────────────────────────────────


class FakeServer:
    """The server's end: acknowledges, remembers what nodes said, answers forwarded RPCs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener: asyncio.AbstractServer | None = None
        self.ends: list[FrameProtocol[NodeMessage]] = []
        self.messages: list[Message] = []
        self.hellos: list[Hello] = []
        self.acknowledges = True
        self.known: Callable[[Hello], list[tuple[str, str, int]]] = _all_known
        self.lost: list[str] = []
        self.rpcs: dict[str, Callable[[RpcRequest], list[RpcReply] | None]] = {}
        self._changed = asyncio.Event()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(self._accept, str(self._path))

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for end in self.ends:
            end.close()
        self.ends.clear()
        await asyncio.sleep(0)

    def _accept(self) -> FrameProtocol[NodeMessage]:
        holder: list[FrameProtocol[NodeMessage]] = []
        end: FrameProtocol[NodeMessage] = FrameProtocol(
            NodeMessage, lambda message: self._received(holder[0], message), lambda _: None
        )
        holder.append(end)
        self.ends.append(end)
        return end

    def _received(self, end: FrameProtocol[NodeMessage], message: Message) -> None:
        if isinstance(message, Ping):
            return
        if isinstance(message, Hello):
            self.hellos.append(message)
            known = self.known(message)
            end.send(Welcome("sv-test", 0.5, "http://127.0.0.1:1", "", self.lost, known))
        else:
            self.messages.append(message)
            if isinstance(message, RpcRequest):
                self._rpc(end, message)
            seq = getattr(message, "seq", 0)
            if seq and self.acknowledges:
                end.send(LogsTaken(seq) if isinstance(message, Logs) else Ack(seq))
        self._changed.set()

    def _rpc(self, end: FrameProtocol[NodeMessage], request: RpcRequest) -> None:
        answer = self.rpcs.get(request.path.rpartition("/")[2])
        replies = (
            answer(request)
            if answer
            else [RpcReply(request.rpc_id, 12, b"", f"{request.path} is not here")]
        )
        for reply in replies or []:
            end.send(reply)

    def send(self, message: ServerMessage) -> None:
        self.ends[-1].send(message)

    def deliver(self, task_id: str, *items: InputItem) -> None:
        self.send(DeliverInputs(task_id, list(items)))

    def all(self, kind: type[M]) -> list[M]:
        return [message for message in self.messages if isinstance(message, kind)]

    def outputs(self) -> list[OutputItem]:
        return [item for message in self.all(Outputs) for item in message.items]

    def output(self, input_id: str) -> OutputItem | None:
        return next((item for item in self.outputs() if item.input_id == input_id), None)

    def entries(self) -> list[LogEntry]:
        return [entry for message in self.all(Logs) for entry in message.entries]

    def text(self, fd: int) -> str:
        return "".join(entry.data for entry in self.entries() if entry.fd == fd)

    async def until(self, condition: Callable[[], object]) -> None:
        """Until something the node said makes ``condition`` true."""

        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        try:
            await asyncio.wait_for(wait(), WAIT_S)
        except TimeoutError:
            raise AssertionError(f"not seen; the node said {self.messages}") from None

    async def first(self, kind: type[M], count: int = 1) -> M:
        await self.until(lambda: len(self.all(kind)) >= count)
        return self.all(kind)[count - 1]

    async def done(self, *input_ids: str) -> list[OutputItem]:
        """The outputs of these inputs."""
        await self.until(lambda: all(self.output(one) for one in input_ids))
        found = [self.output(one) for one in input_ids]
        return [one for one in found if one is not None]


def _all_known(hello: Hello) -> list[tuple[str, str, int]]:
    return [
        (task.task_id, input_id, retry) for task in hello.running for input_id, retry in task.inputs
    ]


# ── the node ──────────────────────────────────────────────────────────────────────────────────


async def unattached(container: Container) -> Callable[[], None]:
    """No way to blobs: these containers share the machine's network."""
    del container
    return lambda: None


class Node:
    """A whole node without isolation, linked to a ``FakeServer``."""

    def __init__(self, root: Path, *, templates_max: int = 0) -> None:
        self.server = FakeServer(root / "link.sock")
        self.runtime = PlainRuntime()
        self.link = NodeLink(self._connect, backoff_s=(0.01, 0.05))
        isolation = Isolation(self.runtime)
        preparer = Preparer(root / "tasks", isolation, NoLayers(root / "layers"), NoMounts())
        self.memory_is_short = False
        self.templates: Templates | None = None
        if templates_max:
            self.templates = Templates(
                preparer,
                SystemClock(),
                count_max=templates_max,
                upstream=self.link,
                attach=unattached,
                short=lambda: self.memory_is_short,
                tight=lambda: self.memory_is_short,
            )
        self.supervisor = Supervisor(
            node_id="no-test",
            capacity=Resources(2000, 1024),
            isolation=isolation,
            gpus=(),
            link=self.link,
            preparer=preparer,
            relay=None,
            builds=None,
            clock=SystemClock(),
            templates=self.templates,
        )
        self._root = root
        self._link_task: asyncio.Task[None] | None = None

    async def _connect(
        self,
        on_message: Callable[[ServerMessage], None],
        on_close: Callable[[Exception | None], None],
    ) -> FrameProtocol[ServerMessage]:
        protocol: FrameProtocol[ServerMessage] = FrameProtocol(ServerMessage, on_message, on_close)
        path = str(self._root / "link.sock")
        await asyncio.get_running_loop().create_unix_connection(lambda: protocol, path)
        return protocol

    async def __aenter__(self) -> Node:
        await self.server.start()
        if self.templates is not None:
            self.templates.start()
        self._link_task = asyncio.create_task(self.link.run(self.supervisor))
        await self.link.wait_up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.supervisor.stop(0.2)
        assert self._link_task is not None
        self._link_task.cancel()
        await asyncio.wait([self._link_task])
        await self.server.stop()
        assert all(container.removed for container in self.runtime.containers)
        assert not list((self._root / "tasks").glob("*"))

    def start(self, start: StartTask) -> str:
        self.server.send(start)
        return start.task_id


def start_task(definition: api_pb2.Function, **changes: object) -> StartTask:
    """A ``StartTask`` for one function of ``programs/``."""
    task_id = ids.new("ta")
    app_layout = layout(definition)
    arguments = api_pb2.ContainerArguments(
        task_id=task_id,
        function_id="fu-1234567890123456789012",
        app_id="ap-1234567890123456789012",
        function_def=definition,
        app_layout=app_layout,
        checkpoint_id="cp-1" if definition.is_checkpointing_function else "",
    )
    values: dict[str, object] = {
        "task_id": task_id,
        "function_id": arguments.function_id,
        "app_id": arguments.app_id,
        "command": ["python", "-m", "modal._container_entrypoint"],
        "layers": [],
        "mounts": [],
        "env": {},
        "workdir": "/root",
        "arguments": arguments.SerializeToString(),
        "python": "3.11",
        "limits": Limits(),
        "runtime": "",
        "startup_timeout_s": 30.0,
        "input_timeout_s": 60.0,
        "max_concurrent": max(1, definition.max_concurrent_inputs),
        "target_concurrent": definition.target_concurrent_inputs,
        "batch_max_size": definition.batch_max_size,
        "batch_linger_ms": definition.batch_linger_ms,
        "single_use": False,
        "is_server": False,
        "block_network": False,
        "untrusted": False,
        **changes,
    }
    return StartTask(**values)  # type: ignore[arg-type]


def function(name: str, module: str = "plain", **fields: object) -> api_pb2.Function:
    return api_pb2.Function(
        module_name=module,
        function_name=name,
        definition_type=api_pb2.Function.DEFINITION_TYPE_FILE,
        function_type=fields.pop("function_type", api_pb2.Function.FUNCTION_TYPE_FUNCTION),  # type: ignore[arg-type]
        **fields,  # type: ignore[arg-type]
    )


def layout(definition: api_pb2.Function) -> api_pb2.AppLayout:
    if not definition.is_class:
        return api_pb2.AppLayout()
    name = definition.function_name.removesuffix(".*")
    kind = api_pb2.Function.FUNCTION_TYPE_FUNCTION
    method = api_pb2.FunctionHandleMetadata(function_name=f"{name}.add", function_type=kind)
    service = api_pb2.FunctionHandleMetadata(
        function_name=f"{name}.*", is_method=False, method_handle_metadata={"add": method}
    )
    image_id = "im-1234567890123456789012"
    definition.object_dependencies.add(object_id=image_id)
    result = api_pb2.AppLayout()
    result.objects.add(object_id=image_id)
    result.function_ids[f"{name}.*"] = "fu-1234567890123456789012"
    result.class_ids[name] = "cs-1234567890123456789012"
    result.objects.add(object_id="fu-1234567890123456789012", function_handle_metadata=service)
    result.objects.add(
        object_id="cs-1234567890123456789012", class_handle_metadata=api_pb2.ClassHandleMetadata()
    )
    return result


_number = iter(range(10**9))


def item(*args: object, method: str = "", **changes: object) -> InputItem:
    """An input with pickled arguments."""
    number = next(_number)
    values: dict[str, object] = {
        "input_id": f"in-{number:022d}",
        "call_id": f"fc-{number:022d}",
        "retry_count": 0,
        "args": pickle.dumps((args, {}), protocol=4),
        "args_blob_id": "",
        "data_format": 1,
        "method_name": method,
        "invocation_type": 4,
        **changes,
    }
    return InputItem(**values)  # type: ignore[arg-type]


def value(output: OutputItem) -> object:
    """What a successful output returned."""
    assert output.result.status == 1, output.result
    assert output.result.data is not None
    return pickle.loads(output.result.data)
