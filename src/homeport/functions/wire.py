"""Conversions between the client's function messages and our records."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

import msgspec
from modal_proto import api_pb2

from homeport.functions.model import (
    SCALEDOWN_WINDOW_DEFAULT_S,
    Autoscaler,
    DirectoryMount,
    FunctionRecord,
    FunctionSpec,
    Layout,
    RetryPolicy,
    VolumeMount,
    WebPoint,
)
from homeport.kernel.errors import InvalidError, UnimplementedError
from homeport.kernel.gpus import GpuWish
from homeport.link.messages import BucketRef
from homeport.schedules.model import Cron, Period, Schedule
from homeport.volumes.places import SYSTEM_PATHS, check_places, place

REQUESTS_MAX = 10_000
"""Requests at once in one container of a server that names no limit."""
_TAKEN_PATHS = SYSTEM_PATHS | {"/root", "/tmp"}
"""The client and the user's code are in the home folder of a function's container."""
_FUNCTION_FIELDS = {field.name for field in api_pb2.Function.DESCRIPTOR.fields}
_SHARED_FIELDS = [
    field for field in api_pb2.FunctionData.DESCRIPTOR.fields if field.name in _FUNCTION_FIELDS
]


def function_data(
    function: api_pb2.Function, fallbacks: Sequence[GpuWish] = ()
) -> api_pb2.FunctionData:
    """``FunctionData`` as clients from 1.6 read it: shared fields and the ranked functions.

    There is one for the definition itself, and one for each other GPU that would do.
    """
    data = api_pb2.FunctionData()
    for field in _SHARED_FIELDS:
        value = getattr(function, field.name)
        if field.is_repeated:
            if value:
                target = getattr(data, field.name)
                if field.message_type is not None and field.message_type.GetOptions().map_entry:
                    for key, item in value.items():
                        if hasattr(item, "DESCRIPTOR"):
                            target[key].CopyFrom(item)
                        else:
                            target[key] = item
                else:
                    target.extend(value)
        elif field.message_type is not None:
            if function.HasField(field.name):  # pyright: ignore[reportArgumentType]
                getattr(data, field.name).CopyFrom(value)
        else:
            setattr(data, field.name, value)
    ranked = data.ranked_functions.add(rank=0)
    ranked.function.CopyFrom(function)
    for rank, wish in enumerate(fallbacks, 1):
        other = data.ranked_functions.add(rank=rank).function
        other.CopyFrom(function)
        other.resources.gpu_config.CopyFrom(api_pb2.GPUConfig(gpu_type=wish.type, count=wish.count))
    return data


def function_of(
    request: api_pb2.FunctionCreateRequest,
) -> tuple[api_pb2.Function, list[GpuWish]]:
    """The definition in a create request, and what GPUs would do as well.

    A list of GPUs (``gpu=["H100", "A100"]``) arrives as ``function_data`` with ranked functions that
    differ in their resources; the first is taken as the definition.
    """
    if request.HasField("function"):
        return request.function, []
    ranked = sorted(request.function_data.ranked_functions, key=lambda item: item.rank)
    if not ranked:
        raise InvalidError("FunctionCreate carries no function definition")
    others = [item.function.resources.gpu_config for item in ranked[1:]]
    return ranked[0].function, [GpuWish(gpu.gpu_type, gpu.count) for gpu in others if gpu.count]


def precreated_handle(
    request: api_pb2.FunctionPrecreateRequest, app_id: str
) -> api_pb2.FunctionHandleMetadata:
    """The handle of a function that is only announced."""
    handle = api_pb2.FunctionHandleMetadata(
        function_name=request.function_name,
        function_type=request.function_type,
        app_id=app_id,
        supported_input_formats=request.supported_input_formats,
        supported_output_formats=request.supported_output_formats,
    )
    if request.HasField("function_schema"):
        handle.function_schema.CopyFrom(request.function_schema)
    _add_methods(handle, request.method_definitions, app_id)
    return handle


def created_handle(
    function: api_pb2.Function, app_id: str, salt: bytes = b""
) -> api_pb2.FunctionHandleMetadata:
    """The handle of a function with its definition (``salt``: see ``definition_id``)."""
    handle = api_pb2.FunctionHandleMetadata(
        function_name=function.function_name,
        function_type=function.function_type,
        app_id=app_id,
        definition_id=definition_id(function, salt),
        is_method=function.is_method,
        supported_input_formats=function.supported_input_formats,
        supported_output_formats=function.supported_output_formats,
    )
    if function.HasField("function_schema"):
        handle.function_schema.CopyFrom(function.function_schema)
    if function.HasField("class_parameter_info"):
        handle.class_parameter_info.CopyFrom(function.class_parameter_info)
    _add_methods(handle, function.method_definitions, app_id)
    return handle


def _add_methods(
    handle: api_pb2.FunctionHandleMetadata,
    methods: Mapping[str, api_pb2.MethodDefinition],
    app_id: str,
) -> None:
    for name, method in methods.items():
        entry = handle.method_handle_metadata[name]
        entry.function_name = method.function_name
        entry.function_type = method.function_type
        entry.is_method = True
        entry.use_method_name = name
        entry.app_id = app_id
        entry.supported_input_formats.extend(method.supported_input_formats)
        entry.supported_output_formats.extend(method.supported_output_formats)
        if method.HasField("function_schema"):
            entry.function_schema.CopyFrom(method.function_schema)


def definition_id(function: api_pb2.Function, salt: bytes = b"") -> str:
    """The same id for the same definition: mount ids come in set order, so they are sorted.

    ``salt`` tells definitions apart that differ in what they refer to.
    """
    copy = api_pb2.Function()
    copy.CopyFrom(function)
    mounts = sorted(copy.mount_ids)
    del copy.mount_ids[:]
    copy.mount_ids.extend(mounts)
    copy.ClearField("web_url_info")
    digest = hashlib.sha256(copy.SerializeToString(deterministic=True) + salt).hexdigest()
    return f"de-{digest[:22]}"


def spec_of(
    function: api_pb2.Function,
    *,
    function_id: str,
    app_id: str,
    client_version: str,
    schedule: Schedule | None = None,
    base_function_id: str = "",
    serialized_params: bytes = b"",
    web: Sequence[WebPoint] = (),
    gpu_fallbacks: Sequence[GpuWish] = (),
) -> FunctionSpec:
    """What the scheduler needs of a definition. Raises ``InvalidError``."""
    timeout_s = float(function.timeout_secs or 300)
    resources = function.resources
    volumes = _volumes(function)
    directories = [
        DirectoryMount(mount.shared_volume_id, place(mount.mount_path))
        for mount in function.shared_volume_mounts
    ]
    buckets = [bucket_of(mount) for mount in function.cloud_bucket_mounts]
    check_places([mount.path for mount in (*volumes, *directories, *buckets)], _TAKEN_PATHS)
    return FunctionSpec(
        function_id=function_id,
        app_id=app_id,
        tag=function.function_name,
        client_version=client_version,
        image_id=function.image_id,
        mount_ids=list(function.mount_ids),
        secret_ids=list(function.secret_ids),
        milli_cpu=resources.milli_cpu,
        milli_cpu_max=resources.milli_cpu_max,
        memory_mb=resources.memory_mb,
        memory_mb_max=resources.memory_mb_max,
        gpu_type=resources.gpu_config.gpu_type,
        gpu_count=resources.gpu_config.count,
        gpu_fallbacks=list(gpu_fallbacks),
        timeout_s=timeout_s,
        startup_timeout_s=_startup_timeout_s(function, timeout_s),
        retry_policy=_retry_policy(function),
        autoscaler=_autoscaler(function),
        max_concurrent=_max_concurrent(function),
        target_concurrent=_target_concurrent(function),
        batch_max_size=function.batch_max_size,
        batch_linger_ms=function.batch_linger_ms,
        single_use=function.single_use_containers
        or function.max_inputs == 1
        or function.is_builder_function,
        is_class=function.is_class,
        is_server=function.is_server,
        is_generator=function.function_type == api_pb2.Function.FUNCTION_TYPE_GENERATOR,
        block_network=function.block_network,
        untrusted=function.untrusted,
        base_function_id=base_function_id,
        serialized_params=serialized_params,
        schedule=schedule,
        web=list(web),
        volumes=volumes,
        directories=directories,
        buckets=buckets,
        memory_snapshot=function.checkpointing_enabled and not function.is_auto_snapshot,
    )


def schedule_of(message: api_pb2.Schedule) -> Schedule | None:
    """The schedule in a definition. Raises ``InvalidError`` for one that cannot be followed."""
    schedule: Schedule
    if message.HasField("cron"):
        schedule = Cron(message.cron.cron_string, message.cron.timezone)
    elif message.HasField("period"):
        fields = api_pb2.Schedule.Period.DESCRIPTOR.fields
        schedule = Period(**{field.name: getattr(message.period, field.name) for field in fields})
    else:
        return None
    schedule.check()
    return schedule


def _startup_timeout_s(function: api_pb2.Function, timeout_s: float) -> float:
    if function.is_server:
        return float(function.http_config.startup_timeout or function.startup_timeout_secs or 30)
    return float(function.startup_timeout_secs or timeout_s)


def _max_concurrent(function: api_pb2.Function) -> int:
    """Inputs, or requests of a server (0 = any number), at once in a container."""
    if function.is_server:
        return function.max_concurrent_inputs or REQUESTS_MAX
    return function.max_concurrent_inputs or function.target_concurrent_inputs


def _target_concurrent(function: api_pb2.Function) -> int:
    """The same as the autoscaler aims for; it counts whole requests."""
    if not function.is_server:
        return function.target_concurrent_inputs
    target = function.autoscaler_settings.target_concurrency_float
    return math.ceil(target) or function.http_config.target_concurrency


def _volumes(function: api_pb2.Function) -> list[VolumeMount]:
    return [
        VolumeMount(
            mount.volume_id, place(mount.mount_path), mount.read_only, mount.sub_path.strip("/")
        )
        for mount in function.volume_mounts
    ]


def bucket_of(mount: api_pb2.CloudBucketMount) -> BucketRef:
    """Raises ``InvalidError``, and ``UnimplementedError`` for a way to sign in that is not built."""
    if mount.oidc_auth_role_arn:
        raise UnimplementedError(
            f"the bucket {mount.bucket_name!r} is to be opened by a role (oidc_auth_role_arn=), "
            "which Homeport does not have: pass a secret with access keys"
        )
    if not mount.bucket_name or "/" in mount.bucket_name:
        raise InvalidError(f"{mount.bucket_name!r} is not the name of a bucket")
    return BucketRef(
        path=place(mount.mount_path),
        bucket=mount.bucket_name,
        kind=_BUCKET_KINDS.get(mount.bucket_type, "s3"),
        endpoint_url=mount.bucket_endpoint_url,
        key_prefix=mount.key_prefix,
        secret_id=mount.credentials_secret_id,
        read_only=mount.read_only,
        requester_pays=mount.requester_pays,
        force_path_style=mount.force_path_style,
    )


_BUCKET_KINDS = {
    api_pb2.CloudBucketMount.R2: "r2",
    api_pb2.CloudBucketMount.GCP: "gcp",
}


def _retry_policy(function: api_pb2.Function) -> RetryPolicy | None:
    if not function.HasField("retry_policy"):
        return None
    policy = function.retry_policy
    if not math.isfinite(policy.backoff_coefficient) or policy.backoff_coefficient < 0:
        raise InvalidError(
            f"the backoff coefficient of a retry policy cannot be {policy.backoff_coefficient}"
        )
    return RetryPolicy(
        retries=policy.retries,
        initial_delay_s=policy.initial_delay_ms / 1000,
        backoff=policy.backoff_coefficient or 1.0,
        max_delay_s=policy.max_delay_ms / 1000,
    )


def _autoscaler(function: api_pb2.Function) -> Autoscaler:
    """The settings message, with the deprecated single fields of older clients behind it."""
    old = Autoscaler(
        min_containers=function.warm_pool_size or None,
        max_containers=function.concurrency_limit or None,
        buffer_containers=function._experimental_buffer_containers or None,  # pyright: ignore[reportPrivateUsage]
        scaledown_window_s=float(function.task_idle_timeout_secs) or None,
    )
    return old.merged(autoscaler_of(function.autoscaler_settings))


def autoscaler_of(settings: api_pb2.AutoscalerSettings) -> Autoscaler:
    """The fields that ``settings`` sets."""
    return Autoscaler(
        min_containers=settings.min_containers if settings.HasField("min_containers") else None,
        max_containers=settings.max_containers if settings.HasField("max_containers") else None,
        buffer_containers=(
            settings.buffer_containers if settings.HasField("buffer_containers") else None
        ),
        scaledown_window_s=(
            float(settings.scaledown_window) if settings.HasField("scaledown_window") else None
        ),
    )


def autoscaler_message(autoscaler: Autoscaler) -> api_pb2.AutoscalerSettings:
    """All settings in force, defaults filled in (``max_containers`` 0 = no limit)."""
    return api_pb2.AutoscalerSettings(
        min_containers=autoscaler.min_containers or 0,
        max_containers=autoscaler.max_containers or 0,
        buffer_containers=autoscaler.buffer_containers or 0,
        scaledown_window=int(autoscaler.scaledown_window_s or SCALEDOWN_WINDOW_DEFAULT_S),
    )


def retry_policy_message(policy: RetryPolicy | None) -> api_pb2.FunctionRetryPolicy:
    """The policy as a call's answer echoes it."""
    if policy is None:
        return api_pb2.FunctionRetryPolicy()
    return api_pb2.FunctionRetryPolicy(
        retries=policy.retries,
        initial_delay_ms=round(policy.initial_delay_s * 1000),
        backoff_coefficient=policy.backoff,
        max_delay_ms=round(policy.max_delay_s * 1000),
    )


# ── variants ──────────────────────────────────────────────────────────────────────────────────


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain data only: any reference to a class or function is refused."""

    def find_class(self, _module: str, _name: str, /) -> Any:
        raise pickle.UnpicklingError("only plain values are read here")


def canonical_params(serialized: bytes) -> bytes:
    """One byte string for equal class parameters, however a client serialized them.

    Clients send a ``ClassParameterSet``; a nested call inside a container of 1.6 sends pickled
    ``((), kwargs)`` instead. What cannot be read as plain values is compared as it is.
    """
    if not serialized:
        return b""
    values = _pickled_params(serialized) or _proto_params(serialized)
    if values is None:
        return serialized
    try:
        return msgspec.msgpack.encode(sorted(values.items(), key=lambda item: item[0]))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return serialized


def _pickled_params(serialized: bytes) -> dict[str, Any] | None:
    if not serialized.startswith(b"\x80"):
        return None
    try:
        args, kwargs = _PlainUnpickler(BytesIO(serialized)).load()
        return {"": list(args), **kwargs} if args else dict(kwargs)
    except Exception:  # any malformed pickle: not ours to judge, the container will
        return None


def _proto_params(serialized: bytes) -> dict[str, Any] | None:
    try:
        parsed = api_pb2.ClassParameterSet.FromString(serialized)
    except Exception:
        return None
    values: dict[str, Any] = {}
    for parameter in parsed.parameters:
        which = parameter.WhichOneof("value_oneof")
        values[parameter.name] = getattr(parameter, which) if which else None
    return values


def with_options(
    definition: api_pb2.Function, options: api_pb2.FunctionOptions
) -> api_pb2.Function:
    """A copy of ``definition`` with the overrides that ``options`` sets (RPC FunctionBindParams)."""
    function = api_pb2.Function()
    function.CopyFrom(definition)
    if options.replace_secret_ids:
        del function.secret_ids[:]
    function.secret_ids.extend(options.secret_ids)
    if options.replace_volume_mounts:
        del function.volume_mounts[:]
    function.volume_mounts.extend(options.volume_mounts)
    if options.replace_cloud_bucket_mounts:
        del function.cloud_bucket_mounts[:]
    function.cloud_bucket_mounts.extend(options.cloud_bucket_mounts)
    if options.HasField("resources"):
        _merge_resources(function.resources, options.resources)
    if options.HasField("retry_policy"):
        function.retry_policy.CopyFrom(options.retry_policy)
    settings = function.autoscaler_settings
    if options.HasField("concurrency_limit"):
        function.concurrency_limit = options.concurrency_limit
        settings.max_containers = options.concurrency_limit
    if options.HasField("buffer_containers"):
        settings.buffer_containers = options.buffer_containers
    if options.HasField("warm_pool_size"):
        function.warm_pool_size = options.warm_pool_size
        settings.min_containers = options.warm_pool_size
    if options.HasField("task_idle_timeout_secs"):
        function.task_idle_timeout_secs = options.task_idle_timeout_secs
        settings.scaledown_window = options.task_idle_timeout_secs
    for name in (
        "timeout_secs",
        "max_concurrent_inputs",
        "target_concurrent_inputs",
        "batch_max_size",
        "batch_linger_ms",
    ):
        if options.HasField(name):
            setattr(function, name, getattr(options, name))
    return function


def _merge_resources(target: api_pb2.Resources, changes: api_pb2.Resources) -> None:
    """Field by field: an empty message, or an empty GPU inside it, means no change."""
    for field, value in changes.ListFields():
        if field.name == "gpu_config":
            if changes.gpu_config.count:
                target.gpu_config.CopyFrom(changes.gpu_config)
        else:
            setattr(target, field.name, value)


# ── containers ────────────────────────────────────────────────────────────────────────────────


def layout_message(layout: Layout, records: Iterable[FunctionRecord]) -> api_pb2.AppLayout:
    """The app's layout with a handle for each object in it."""
    message = api_pb2.AppLayout(function_ids=layout.function_ids, class_ids=layout.class_ids)
    for record in records:
        item = message.objects.add(object_id=record.function_id)
        item.function_handle_metadata.ParseFromString(record.handle)
    for class_id in layout.class_ids.values():
        item = message.objects.add(object_id=class_id)
        item.class_handle_metadata.SetInParent()
    return message


def function_summary(
    record: FunctionRecord, summary: api_pb2.AppGetInfoResponse.FunctionInfoSummary
) -> None:
    """Fill in what a listing shows of a function."""
    function = api_pb2.Function.FromString(record.definition)
    for wish in record.spec.gpus if record.spec is not None else ():
        summary.gpu_config.add(gpu_type=wish.type, count=wish.count)
    if function.HasField("schedule"):
        summary.schedule.CopyFrom(function.schedule)
    webhooks = [
        function.webhook_config,
        *(method.webhook_config for method in function.method_definitions.values()),
    ]
    summary.web_function = any(webhook.type for webhook in webhooks)
    summary.requires_proxy_auth = any(webhook.requires_proxy_auth for webhook in webhooks)
    summary.is_sessioned = function.is_sessioned


def container_arguments(
    record: FunctionRecord,
    *,
    task_id: str,
    layout: api_pb2.AppLayout,
    environment: str,
    volume_handle: Callable[[str], bytes] = lambda _: b"",
) -> bytes:
    """The serialized ``ContainerArguments`` of a task of ``record``.

    ``volume_handle`` gives the serialized ``VolumeMetadata`` of a volume, empty for any other id:
    a container does not ask for the volumes that its function knows, and needs their version.
    """
    spec = record.require_spec()
    definition = api_pb2.Function.FromString(record.definition)
    # In a container that takes no snapshot the client does not look at it.
    definition.is_checkpointing_function = spec.memory_snapshot
    known = {item.object_id for item in layout.objects}
    for dependency in definition.object_dependencies:
        if dependency.object_id not in known:
            item = layout.objects.add(object_id=dependency.object_id)
            if handle := volume_handle(dependency.object_id):
                item.volume_metadata.ParseFromString(handle)
            known.add(dependency.object_id)
    return api_pb2.ContainerArguments(
        task_id=task_id,
        function_id=record.function_id,
        app_id=record.app_id,
        function_def=definition,
        serialized_params=spec.serialized_params,
        environment_name=environment,
        app_layout=layout,
        checkpoint_id=f"cp-{record.function_id.partition('-')[2]}",
    ).SerializeToString()
