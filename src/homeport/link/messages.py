"""What server and node say to each other.

One connection, opened by the node (``GET /_node/link`` with an HTTP upgrade on the server's port),
carries length-prefixed msgpack frames both ways (see ``framing.py``). Every message is a tagged
struct; unknown tags end the connection, so both sides must speak ``PROTOCOL``.

Delivery rules:

* Messages of one direction arrive in order. After a reconnect the node sends ``Hello`` with all it
  runs; the server answers ``Welcome`` and both re-send what was not acknowledged.
* The node keeps ``Outputs`` and ``TaskExited`` until the server acknowledged their ``seq``
  (``Ack``): outputs are durable in the server before they are forgotten in the node.
* An input handed to a task is the node's until it reports an output for it, gives it back
  (``InputsReturned``) or reports the task's end; then the server decides what becomes of it.
"""

from __future__ import annotations

import msgspec

from homeport.kernel.gpus import Gpu
from homeport.kernel.resources import Limits, Resources

PROTOCOL = 5
RELAY_HOST = "127.77.77.77"
"""Where a container finds its node's relay to the server's HTTP side: a loopback address of its own
network namespace, so that client-side checks of blob hosts accept it."""
RELAY_PORT = 7460
RELAY_ROUTER_PORT = 7461
"""Where, at that address, a container finds its node's command router."""
ROUTER_AUDIENCE = "command-router"
"""What tokens for a node's command router are good for; their subject is a task's id."""
CONNECT_AUDIENCE = "connect"
"""What connect tokens are good for; their subject is a task's id, their scope a ``ConnectScope``."""
SECRETS_PATH = "homeport/secrets"
IMAGE_PATH = "homeport/image"
SIDECAR_PATH = "homeport/sidecar"
"""``RpcRequest.path`` with which a node itself asks for the variables of secrets; ``body`` is a
msgpack list of their ids, the answer a msgpack map."""
ARRIVAL_PATH = "homeport/arrival"
"""``RpcRequest.path`` with which a node asks about a task that it does not know: the (empty) answer
comes behind the message that starts it, if there is one."""
STREAM_WINDOW = 4 * 1024 * 1024
"""Bytes of one forwarded stream that may be on their way."""
HTTPS_PORT = 443
"""Port of a tunnel that has an address for itself (``OpenTunnel.host``)."""
STREAM_GOES_ON = -1
"""``RpcReply.status`` of a message that is not the last of its RPC."""
FRAME_BYTES_MAX = 256 * 1024 * 1024
"""A frame carries at most a batch of outputs or one forwarded request (≤ 128 MiB each)."""


class Message(msgspec.Struct, tag=True, array_like=True):
    """Base of all link messages."""


# ── values ────────────────────────────────────────────────────────────────────────────────────


class Result(msgspec.Struct, array_like=True):
    """How an attempt or a task's start ended; the fields of the protocol's ``GenericResult``.

    ``status`` is one of the ``STATUS_*`` numbers below. ``data`` is an inline payload,
    ``data_blob_id`` names one in the blob store (at most one is set).
    """

    status: int
    exception: str = ""
    traceback: str = ""
    serialized_tb: bytes = b""
    tb_line_cache: bytes = b""
    data: bytes | None = None
    data_blob_id: str = ""


STATUS_SUCCESS = 1
STATUS_FAILURE = 2
STATUS_TERMINATED = 3
STATUS_TIMEOUT = 4
STATUS_INIT_FAILURE = 5
STATUS_INTERNAL_FAILURE = 6
STATUS_IDLE_TIMEOUT = 7
STATUS_OUT_OF_MEMORY = 10
"""The kernel killed it (``GENERIC_STATUS_KERNEL_OOM_KILL``)."""


class InputItem(msgspec.Struct, array_like=True):
    """One attempt of an input on its way to a container. ``args`` or ``args_blob_id`` is set."""

    input_id: str
    call_id: str
    retry_count: int
    args: bytes | None
    args_blob_id: str
    data_format: int
    method_name: str
    invocation_type: int
    """``FunctionCallInvocationType`` of the protocol (decides blob thresholds in the container)."""
    final: bool = False
    """The container is to exit after this input (``final_input``)."""
    patient: bool = False
    """One of many: whoever waits for its output gains nothing from having it before the next."""


class OutputItem(msgspec.Struct, array_like=True):
    """The end of one attempt. Times are Unix seconds."""

    input_id: str
    retry_count: int
    result: Result
    data_format: int
    started_at: float
    finished_at: float


class LogEntry(msgspec.Struct, array_like=True):
    """A piece of a container's output: ``fd`` 1 stdout, 2 stderr, 3 system; ``time_ns`` Unix ns."""

    fd: int
    time_ns: int
    data: str
    input_id: str = ""
    call_id: str = ""


class MountRef(msgspec.Struct, frozen=True, array_like=True):
    """A set of files to appear in the container, by the digest of its manifest.

    The manifest (``GET /_node/mounts/<digest>``) lists absolute file names, SHA-256 and mode;
    contents come from ``GET /_node/files/<sha256>``. ``compile`` asks for bytecode made by the
    container's own Python, once per (digest, Python).
    """

    digest: str
    compile: bool = False


class ManifestFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a mount: absolute ``name`` in the container, permission bits ``mode``."""

    name: str
    sha256: str
    mode: int
    size: int


class ImageConfig(msgspec.Struct, frozen=True, array_like=True):
    """What an image says about running in it (the OCI image config's fields)."""

    env: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    entrypoint: list[str] = []
    cmd: list[str] = []
    shell: list[str] = []
    labels: dict[str, str] = {}
    ports: list[str] = []
    """As ``8080/tcp``."""
    volumes: list[str] = []
    stop_signal: str = ""
    healthcheck: list[str] = []
    """``CMD`` and words, ``CMD-SHELL`` and a line, or ``NONE``."""
    onbuild: list[str] = []
    """Instructions for the image that is built from this one."""


class VolumeRef(msgspec.Struct, frozen=True, array_like=True):
    """A volume at ``path`` in the container; of it only the directory ``sub_path``, if given.

    What is in it comes from ``GET /_node/volumes/<id>/changes`` (see ``link/volumes.py``).
    """

    volume_id: str
    path: str
    read_only: bool = False
    sub_path: str = ""


class ProbeRef(msgspec.Struct, frozen=True, array_like=True):
    """When a sandbox is ready: something listens on ``tcp_port``, or ``command`` exits with 0.

    Tried every ``interval_ms`` until it is so for the first time.
    """

    tcp_port: int = 0
    command: list[str] = []
    interval_ms: int = 100


class TerminalRef(msgspec.Struct, frozen=True, array_like=True):
    """A terminal to run a program on: its size and what the program is told about it."""

    rows: int = 24
    columns: int = 80
    env: dict[str, str] = {}


class HostDirectory(msgspec.Struct, frozen=True, array_like=True):
    """A directory of the server's machine at ``path`` in the container, as it is."""

    source: str
    path: str


class BucketRef(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket of an object store at ``path`` in the container.

    ``kind`` is ``s3``, ``r2`` or ``gcp``; ``credentials`` are those of the secret ``secret_id``,
    under the client's names, filled in when a container starts (empty: anonymous).
    """

    path: str
    bucket: str
    kind: str = "s3"
    endpoint_url: str = ""
    key_prefix: str = ""
    secret_id: str = ""
    read_only: bool = False
    requester_pays: bool = False
    force_path_style: bool = False
    credentials: dict[str, str] = {}


class RunningTask(msgspec.Struct, array_like=True):
    """A task the node still has, as said in ``Hello``: with every input it holds for it."""

    task_id: str
    ready: bool
    inputs: list[tuple[str, int]]
    """``(input_id, retry_count)`` of inputs delivered and not yet reported as outputs."""
    address: str = ""
    gpus: list[str] = []
    """UUIDs of the GPUs it has."""


# ── node → server ─────────────────────────────────────────────────────────────────────────────


class Hello(Message):
    """First message of a connection. ``capacity`` is what the server may place on this node."""

    protocol: int
    node_id: str
    version: str
    capacity: Resources
    runtimes: list[str]
    """With one that is still being tried, if it will probably work."""
    gpus: list[Gpu]
    """Those that containers may be given."""
    running: list[RunningTask]
    layers: list[str] = []
    """The image layers it has."""
    router_port: int = 0
    """Where its command router listens."""
    router_host: str = ""
    """The router's host name for clients; empty = the server's own."""


class RuntimesKnown(Message):
    """What ``Hello.runtimes`` is now: one that was being tried does not work."""

    runtimes: list[str]


class LayersDropped(Message):
    """The node deleted these image layers: to make room, or because it was told to."""

    keys: list[str]


class TaskReady(Message):
    """The container asked for its first input (a server: its port is open).

    ``address`` is its ``eth0``'s, empty without one.
    """

    task_id: str
    time: float
    address: str = ""


class SandboxStarted(Message):
    """The sandbox's command runs. Acknowledged by ``Ack(seq)``.

    The node answers nobody who uses the sandbox before that: a server that does not know of the
    start would start it once more on a node that lost it, and what was done in it would be gone.
    """

    seq: int
    task_id: str
    time: float


class InputsStarted(Message):
    """These attempts were handed to the container. ``(input_id, retry_count)`` pairs."""

    task_id: str
    inputs: list[tuple[str, int]]
    time: float


class Outputs(Message):
    """Ends of attempts, in the order the container gave them. Acknowledged by ``Ack(seq)``."""

    seq: int
    task_id: str
    items: list[OutputItem]


class InputsReturned(Message):
    """Attempts that were delivered but never started in the container: to be queued again."""

    task_id: str
    inputs: list[tuple[str, int]]


class SandboxReady(Message):
    """The sandbox's readiness probe succeeded for the first time."""

    task_id: str
    time: float


class SandboxSnapshot(Message):
    """The files of a sandbox are an image now. Acknowledged by ``Ack(seq)``.

    ``layers`` are those on top of its image's. ``ttl_s`` says how long it is wanted, 0 = for ever.
    With ``own_base`` they are on top of the image ``base_id`` instead, of nothing without one.
    With ``memory`` it is a memory snapshot, ``image_id`` its id, and the last layer the memory.
    """

    seq: int
    task_id: str
    image_id: str
    layers: list[str]
    ttl_s: float
    own_base: bool = False
    base_id: str = ""
    memory: bool = False


class UsageSample(msgspec.Struct, frozen=True, array_like=True):
    """What a container had used at ``time`` (Unix seconds): processor time, and memory then."""

    time: float
    cpu_s: float
    memory_bytes: int


class TaskInitFailed(Message):
    """The container reported a failed start (RPC ``TaskResult``): import, ``@enter``, ASGI factory.

    After a ``TaskExited`` with ``ready`` it is a failed ``@exit`` instead.
    """

    task_id: str
    result: Result


class TaskStopping(Message):
    """The container asked to stop fetching (RPC ``ContainerStop`` for itself)."""

    task_id: str


class TaskExited(Message):
    """The container is gone, with all its processes. Acknowledged by ``Ack(seq)``.

    ``unfinished`` are the attempts it had started and not finished, ``unstarted`` those delivered
    to the node but never handed to it. ``reason`` is a sentence for the log when it was not a
    normal end; ``stderr_tail`` its last lines.
    """

    seq: int
    task_id: str
    returncode: int
    oom_killed: bool
    was_ready: bool
    unfinished: list[tuple[str, int]]
    unstarted: list[tuple[str, int]]
    reason: str
    stderr_tail: str
    start_failed: bool = False
    """The runtime could not start it at all (``reason`` says why)."""
    layer: str = ""
    """``StartTask.commit_layer``, when that layer is there now."""
    cut_short: str = ""
    """Why the node ended a sandbox: ``timeout``, ``idle``, ``snapshot`` (of its memory) or empty."""
    usage: list[UsageSample] = []
    """What its container used, from its beginning to its end."""


class Logs(Message):
    """Output of a task, in order. Acknowledged by ``LogsTaken(seq)``, else sent again.

    ``seq`` grows within ``origin``, one life of the node: by both the server knows what it has.
    """

    task_id: str
    entries: list[LogEntry]
    origin: str
    seq: int


class RpcRequest(Message):
    """A container's RPC that the node does not answer itself, forwarded with its identity.

    Answered by ``RpcReply`` messages with the same ``rpc_id`` (unique per connection).
    """

    rpc_id: int
    task_id: str
    path: str
    metadata: list[tuple[str, str]]
    body: bytes
    timeout_s: float


class RpcCancel(Message):
    """The container cancelled that RPC."""

    rpc_id: int


class RouterReply(Message):
    """An answer of the command router, or its end; as ``RpcReply``.

    ``code`` is empty or the value of a ``kernel.errors.Code``, ``message`` its sentence.
    """

    rpc_id: int
    status: int
    body: bytes
    code: str = ""
    message: str = ""
    is_stream: bool = False


class Answer(Message):
    """What became of a request of the server with that ``ask_id``.

    ``code`` is empty or the value of a ``kernel.errors.Code``, ``message`` its sentence; ``number``
    is what was asked for, where that is a number; ``usage`` the answer to ``AskUsage``.
    """

    ask_id: int
    code: str = ""
    message: str = ""
    number: int = 0
    usage: list[UsageSample] = []


class RpcRead(Message):
    """``size`` more bytes of the answers of that streaming RPC were taken by its container.

    The server sends at most ``STREAM_WINDOW`` bytes beyond what was taken.
    """

    rpc_id: int
    size: int


class BuildLog(Message):
    """Output of an image build, in order."""

    build_id: str
    entries: list[LogEntry]


class BuildFinished(Message):
    """An image build ended. ``error`` is empty on success. Acknowledged by ``Ack(seq)``."""

    seq: int
    build_id: str
    error: str
    layers: list[str]
    """Layer keys, lowest first, including the base's."""
    config: ImageConfig
    python_version: str
    """What ``python -VV`` printed in the image; empty when it has none."""
    libc_version: str = ""


class Ping(Message):
    """Liveness, every ``Welcome.heartbeat_s``; ``load`` is the one-minute load average."""

    load: float


# ── server → node ─────────────────────────────────────────────────────────────────────────────


class Welcome(Message):
    """Answer to ``Hello``. ``lost_tasks`` are unknown to the server: the node ends them.

    ``blob_root`` is the server's file store if the node may find it on its own disk (same
    machine): then files are linked, not fetched.
    """

    server_id: str
    heartbeat_s: float
    http_url: str
    blob_root: str
    lost_tasks: list[str]
    known_inputs: list[tuple[str, str, int]]
    """``(task_id, input_id, retry_count)`` that the server still wants from this node's tasks."""
    router_key: bytes = b""
    """What the node's command router checks tokens with."""
    router_certificate: str = ""
    router_certificate_key: str = ""
    """As in ``RouterCertificate``."""


class Ack(Message):
    """All node messages with a ``seq`` up to this one are durable in the server."""

    seq: int


class LogsTaken(Message):
    """All ``Logs`` of the node up to this ``seq`` are durable in the server."""

    seq: int


class StartTask(Message):
    """Start a function container.

    ``arguments`` is the serialized ``ContainerArguments`` of the client's protocol, ``env`` the
    complete environment but for what only the node knows (its socket and file paths).
    """

    task_id: str
    function_id: str
    app_id: str
    command: list[str]
    layers: list[str]
    mounts: list[MountRef]
    env: dict[str, str]
    workdir: str
    arguments: bytes
    python: str
    """The image's Python as ``3.11``, for bytecode of ``compile`` mounts."""
    limits: Limits
    runtime: str
    """Isolation back end to use; empty = the node's default."""
    startup_timeout_s: float
    input_timeout_s: float
    max_concurrent: int
    target_concurrent: int
    batch_max_size: int
    batch_linger_ms: int
    single_use: bool
    is_server: bool
    block_network: bool
    untrusted: bool
    """No control-plane access: forwarded RPCs are refused."""
    volumes: list[VolumeRef] = []
    directories: list[HostDirectory] = []
    buckets: list[BucketRef] = []
    server_port: int = 0
    """A server is ready when this port of its container takes connections."""
    memory_snapshot: bool = False
    """Its program may be run up to its memory snapshot before there is a task for it."""
    gpus: list[str] = []
    """UUIDs of the GPUs of the node that it has."""
    commit_layer: str = ""
    """If set: when its input succeeded and it ended well, what it wrote becomes this layer."""
    deployed: bool = False
    """Its app is deployed: there will be more containers like it, or so it is taken to be."""


class StartSandbox(Message):
    """Start a sandbox: a container that runs ``command`` and nothing of ours.

    ``env`` is its complete environment but for PATH and HOME. Times are seconds from the moment it
    runs; ``idle_timeout_s`` 0 = none. Its life is told as ``SandboxStarted``,
    ``SandboxReady``, ``Logs``, ``TaskExited``.
    """

    task_id: str
    sandbox_id: str
    app_id: str
    command: list[str]
    """Empty: nothing runs, and it ends when it is ended."""
    layers: list[str]
    mounts: list[MountRef]
    env: dict[str, str]
    workdir: str
    limits: Limits
    runtime: str
    timeout_s: float
    idle_timeout_s: float
    block_network: bool
    volumes: list[VolumeRef] = []
    probe: ProbeRef | None = None
    terminal: TerminalRef | None = None
    """Its command gets a terminal instead of three pipes."""
    allowed_cidrs: list[str] | None = None
    """All networks it may reach, besides ``allowed_domains``; ``None`` = everything."""
    allowed_domains: list[str] = []
    """Patterns of ``kernel.domains``: TLS servers it may reach, if ``allowed_cidrs`` is a list."""
    directories: list[HostDirectory] = []
    buckets: list[BucketRef] = []
    exit_image_id: str = ""
    """The image that its files are to be when it has ended (told by ``SandboxSnapshot``)."""
    exit_image_s: float = 0.0
    """How long that is wanted."""
    gpus: list[str] = []
    """As in ``StartTask``."""
    memory_snapshots: bool = False
    """``TakeMemory`` may come."""
    memory_layer: str = ""
    """It goes on from the memory that this layer holds."""


class WriteStdin(Message):
    """Write to a sandbox's standard input; answered by ``Answer`` when it is taken.

    ``index`` counts a sandbox's writes from 1: what was taken before is dropped.
    """

    ask_id: int
    task_id: str
    index: int
    data: bytes
    eof: bool


class StartSidecar(Message):
    """Start one more container of a sandbox, under ``name``; answered by ``Answer``.

    ``start.task_id`` is the container's id; the same again is the same container.
    """

    ask_id: int
    task_id: str
    name: str
    start: StartSandbox


class AskUsage(Message):
    """What has a container used so far? Answered by ``Answer``."""

    ask_id: int
    task_id: str


class ReloadVolumes(Message):
    """Show a sandbox the newest state of its volumes; answered by ``Answer``."""

    ask_id: int
    task_id: str


class TakeSnapshot(Message):
    """Make the files of a sandbox the image ``image_id``; answered by ``Answer`` when it is there."""

    ask_id: int
    task_id: str
    image_id: str
    ttl_s: float


class TakeMemory(Message):
    """Take the memory snapshot ``snapshot_id`` of a sandbox, which ends with it.

    Answered by ``Answer`` when it is recorded (``SandboxSnapshot``).
    """

    ask_id: int
    task_id: str
    snapshot_id: str


class OpenTunnel(Message):
    """Let a port of the node lead to ``port`` of a container; it ends with the container.

    Answered by ``Answer``, whose ``number`` is the node's port: the same when asked again. ``h2``:
    TLS clients are offered HTTP/2 alone. With ``host`` the tunnel is at ``HTTPS_PORT`` of that address of
    the node, with a certificate of its own; if that is not to be had, at another port as without.
    """

    ask_id: int
    task_id: str
    port: int
    unencrypted: bool
    h2: bool
    host: str = ""
    certificate: str = ""
    key: str = ""
    sources: list[str] = []
    """Networks that connections may come from; none = all."""
    is_door: bool = False
    """HTTP with connect tokens, to any port of a sandbox; ``port`` is 0."""


class ConnectScope(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a connect token is for: a port of the sandbox, and what its program is told."""

    port: int
    user_data: str | None = None


class DeliverInputs(Message):
    """Attempts for a task, to be handed out in order."""

    task_id: str
    inputs: list[InputItem]


class CancelInputs(Message):
    """End these inputs: drop those not started, cancel those running (the node escalates).

    Each of them comes back as an output with ``STATUS_TERMINATED``.
    """

    task_id: str
    input_ids: list[str]
    gentle: bool = False
    """Do not interrupt the container for it: it may be serving others."""


class RecallInputs(Message):
    """Another container could start these attempts now: give back those that have not started.

    ``InputsReturned`` names them; the others go on.
    """

    task_id: str
    inputs: list[tuple[str, int]]


class StopTask(Message):
    """End a task. ``graceful``: no further inputs, finish the running ones, exit handlers.

    Otherwise: interrupt now (exit handlers run), kill after ``grace_s`` seconds.
    """

    task_id: str
    graceful: bool
    grace_s: float


class RpcReply(Message):
    """One response message of a forwarded RPC, or its end.

    ``status`` is ``STREAM_GOES_ON`` for a message of a stream that goes on, else the gRPC status number that ends
    the RPC; a unary success carries ``body`` and status 0.
    """

    rpc_id: int
    status: int
    body: bytes
    message: str = ""
    trailers: list[tuple[str, str]] = []


class BuildFile(msgspec.Struct, array_like=True):
    """A small file of the build context that travels inline; ``name`` is relative to its root."""

    name: str
    data: bytes
    mode: int = 0o644


class BuildImage(Message):
    """Build one image: ``dockerfile`` on top of the layers of ``base`` images.

    ``bases`` maps the names usable in ``FROM`` (``base``) to (layers, config). A ``FROM`` of any
    other name is a registry image, which the node finds or bootstraps.
    """

    build_id: str
    dockerfile: str
    bases: dict[str, tuple[list[str], ImageConfig]]
    context_mount: str
    """Digest of a mount manifest whose files form the build context; empty = none."""
    context_files: list[BuildFile]
    build_args: dict[str, str]
    secret_env: dict[str, str]
    builder_version: str
    limits: Limits
    timeout_s: float
    no_cache: bool = False
    registry_kind: str = ""
    """How to sign in to the registry of a FROM: ``aws``, ``gcp``, ``static``; empty = as the node
    is signed in itself. ``registry_env`` holds the credentials under the client's names."""
    registry_env: dict[str, str] = {}
    volumes: list[VolumeRef] = []
    """Mounted while a RUN runs."""


class DropLayers(Message):
    """Delete these image layers, but those in use; with ``others`` every layer but these.

    Answered by ``LayersDropped``.
    """

    keys: list[str]
    others: bool = False


class PruneCaches(Message):
    """Delete what builds keep for later ones, but what one uses now. ``Answer.number``: bytes freed."""

    ask_id: int


class RouterRequest(Message):
    """Have the command router answer an RPC (``path``) that came to the server.

    Answered by ``RouterReply`` messages with the same ``rpc_id`` (unique per server process).
    """

    rpc_id: int
    path: str
    body: bytes


class RouterCancel(Message):
    """Nobody waits for the answer of that ``RouterRequest`` any more."""

    rpc_id: int


class RouterCertificate(Message):
    """What the command router shows to those who ask for TLS, from now on; both PEM."""

    certificate: str
    key: str


class CancelBuild(Message):
    """Stop a build; it reports ``BuildFinished`` with an error."""

    build_id: str


NodeMessage = (
    Hello
    | TaskReady
    | SandboxStarted
    | SandboxReady
    | SandboxSnapshot
    | Answer
    | RouterReply
    | InputsStarted
    | Outputs
    | InputsReturned
    | TaskInitFailed
    | TaskStopping
    | TaskExited
    | Logs
    | RpcRequest
    | RpcCancel
    | RpcRead
    | BuildLog
    | BuildFinished
    | LayersDropped
    | RuntimesKnown
    | Ping
)
ServerMessage = (
    Welcome
    | Ack
    | LogsTaken
    | StartTask
    | StartSandbox
    | StartSidecar
    | AskUsage
    | WriteStdin
    | TakeSnapshot
    | TakeMemory
    | ReloadVolumes
    | OpenTunnel
    | DeliverInputs
    | CancelInputs
    | RecallInputs
    | StopTask
    | RpcReply
    | BuildImage
    | CancelBuild
    | DropLayers
    | PruneCaches
    | RouterCertificate
    | RouterRequest
    | RouterCancel
)
