"""What the platform needs to know of a function; the client's own definition stays opaque."""

from __future__ import annotations

import msgspec

from homeport.kernel.errors import InvalidError
from homeport.kernel.gpus import GpuWish
from homeport.link.messages import BucketRef
from homeport.schedules.model import Schedule

STARTUP_TIMEOUT_DEFAULT_S = 300.0
SCALEDOWN_WINDOW_DEFAULT_S = 60.0


RETRY_DELAY_MAX_S = 86400.0
"""The longest wait before another attempt where a policy sets no bound: more is not meant."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often a failed input is tried again, and when (RPC field ``retry_policy``)."""

    retries: int
    initial_delay_s: float
    backoff: float
    max_delay_s: float

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait before retry number ``attempt`` (from 1)."""
        try:
            delay = self.initial_delay_s * self.backoff ** max(0, attempt - 1)
        except OverflowError:
            delay = RETRY_DELAY_MAX_S
        return min(delay, self.max_delay_s if self.max_delay_s > 0 else RETRY_DELAY_MAX_S)


class Autoscaler(msgspec.Struct, frozen=True):
    """The scaling settings of a function; ``None`` means the platform's default."""

    min_containers: int | None = None
    max_containers: int | None = None
    buffer_containers: int | None = None
    scaledown_window_s: float | None = None

    def merged(self, other: Autoscaler) -> Autoscaler:
        """This, with the fields that ``other`` sets."""
        changes = {
            name: value
            for name in self.__struct_fields__
            if (value := getattr(other, name)) is not None
        }
        return msgspec.structs.replace(self, **changes)


class VolumeMount(msgspec.Struct, frozen=True):
    """A volume at ``path`` in a function's containers (RPC field ``volume_mounts``).

    Of it only the directory ``sub_path``, if that is given.
    """

    volume_id: str
    path: str
    read_only: bool = False
    sub_path: str = ""


class WebPoint(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP address of a function, or of one method of a class (RPC field ``webhook_config``)."""

    method: str = ""
    """The method of a class; empty for a plain function."""
    subdomain: str
    """The first label of its host name."""
    domains: list[str] = []
    """Further host names, chosen by the user."""
    needs_token: bool = False
    """Only for callers that show a proxy token."""
    port: int = 0
    """Where a web server listens in the container; 0 = its requests are inputs."""
    is_server: bool = False
    """A ``modal.Server``: no inputs at all."""
    is_sticky: bool = False
    """A caller's requests go to the container that took the first one."""
    is_h2: bool = False
    """The server in the container speaks HTTP/2 without TLS."""


class DirectoryMount(msgspec.Struct, frozen=True):
    """A network file system at ``path`` in a function's containers."""

    object_id: str
    path: str


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One function (or class service function, or bound variant) as the scheduler sees it."""

    function_id: str
    app_id: str
    tag: str
    client_version: str
    image_id: str
    mount_ids: list[str]
    secret_ids: list[str]
    milli_cpu: int
    milli_cpu_max: int
    memory_mb: int
    memory_mb_max: int
    gpu_type: str
    gpu_count: int
    timeout_s: float
    startup_timeout_s: float
    retry_policy: RetryPolicy | None
    autoscaler: Autoscaler
    max_concurrent: int
    target_concurrent: int
    batch_max_size: int
    batch_linger_ms: int
    single_use: bool
    is_class: bool
    is_server: bool
    is_generator: bool
    block_network: bool
    untrusted: bool
    base_function_id: str = ""
    serialized_params: bytes = b""
    volumes: list[VolumeMount] = []
    schedule: Schedule | None = None
    """When it runs by itself, as long as its app is deployed."""
    web: list[WebPoint] = []
    directories: list[DirectoryMount] = []
    buckets: list[BucketRef] = []
    memory_snapshot: bool = False
    """``enable_memory_snapshot``."""
    gpu_fallbacks: list[GpuWish] = []
    """What will do where ``gpu_count`` of ``gpu_type`` are not to be had, the best first."""

    @property
    def gpus(self) -> list[GpuWish]:
        """The GPUs that a container may have, the wanted ones first; none without."""
        first = [GpuWish(self.gpu_type, self.gpu_count)] if self.gpu_count else []
        return [*first, *self.gpu_fallbacks]

    @property
    def is_direct(self) -> bool:
        """Whether connections go to a port of its containers, past their work loop."""
        return bool(self.web) and all(point.port for point in self.web) and not self.block_network

    @property
    def slots(self) -> int:
        """Inputs one container runs at once (a batch counts each of its inputs)."""
        return max(1, self.max_concurrent) * max(1, self.batch_max_size)

    @property
    def display_name(self) -> str:
        """The name a user knows it by."""
        return self.tag.removesuffix(".*")


class FunctionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A function with everything the edge needs to describe it to clients and containers.

    ``definition`` is the serialized ``Function`` a container is given, ``data`` the serialized
    ``FunctionData`` and ``handle`` the serialized ``FunctionHandleMetadata`` clients are given.
    A precreated function has an id and a handle but no ``spec`` yet.
    """

    function_id: str
    app_id: str
    tag: str
    handle: bytes
    created_at: float
    spec: FunctionSpec | None = None
    definition: bytes = b""
    data: bytes = b""
    definition_id: str = ""
    """The same for the same definition, with the same values of its secrets."""
    options: bytes = b""
    """Of a bound variant: the serialized ``FunctionOptions`` it was made with."""

    def require_spec(self) -> FunctionSpec:
        """The spec; raises ``InvalidError`` for a function that was only announced."""
        if self.spec is None:
            raise InvalidError(
                f"Function {self.tag!r} ({self.function_id}) was announced but never created: "
                "its app did not finish starting. Run or deploy the app again."
            )
        return self.spec


class ClassRecord(msgspec.Struct, frozen=True):
    """A class object: only an id; its service function carries everything else."""

    class_id: str
    app_id: str


class Layout(msgspec.Struct, frozen=True):
    """What an app contains: tag → id, as published (RPC ``AppPublish``)."""

    function_ids: dict[str, str] = {}
    class_ids: dict[str, str] = {}
