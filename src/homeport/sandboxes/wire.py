"""Conversions between the client's sandbox messages and our records."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal

from modal_proto import api_pb2

from homeport.functions.wire import bucket_of
from homeport.kernel import domains
from homeport.kernel.errors import InvalidError, UnimplementedError
from homeport.kernel.networks import network
from homeport.link.messages import ProbeRef, TerminalRef, VolumeRef
from homeport.logs.model import Done, Entry, Event
from homeport.sandboxes.costs import Costs, Group
from homeport.sandboxes.model import (
    GVISOR,
    TIMEOUT_DEFAULT_S,
    Port,
    SandboxRecord,
    SandboxResult,
    SandboxSpec,
    Tunnel,
)
from homeport.sandboxes.ports import Source
from homeport.sandboxes.usage import Usage, percentile
from homeport.volumes.places import check_places, place

_PROBE_INTERVAL_MS = 100
_PERCENTILES = (5000, 9000, 9900)
_ITEM_CHARACTERS_MAX = 1024 * 1024
_EXIT_SNAPSHOT = "enable_exit_snapshot"


def spec_of(definition: api_pb2.Sandbox) -> SandboxSpec:
    """What is asked for. Raises ``InvalidError``, and ``UnimplementedError`` for what is not built."""
    _refuse_missing(definition)
    resources = definition.resources
    access = definition.network_access
    volumes = _volumes(definition.volume_mounts)
    directories = [
        (mount.shared_volume_id, place(mount.mount_path)) for mount in definition.nfs_mounts
    ]
    buckets = [bucket_of(mount) for mount in definition.cloud_bucket_mounts]
    places = [*(ref.path for ref in (*volumes, *buckets)), *(path for _, path in directories)]
    check_places(places)
    closed = access.network_access_type == api_pb2.NetworkAccess.BLOCKED
    return SandboxSpec(
        image_id=definition.image_id,
        command=list(definition.entrypoint_args),
        mount_ids=list(definition.mount_ids),
        milli_cpu=resources.milli_cpu,
        milli_cpu_max=resources.milli_cpu_max,
        memory_mb=resources.memory_mb,
        memory_mb_max=resources.memory_mb_max,
        gpu_type=resources.gpu_config.gpu_type,
        gpu_count=resources.gpu_config.count,
        timeout_s=float(definition.timeout_secs) or TIMEOUT_DEFAULT_S,
        idle_timeout_s=float(definition.idle_timeout_secs),
        workdir=posixpath.normpath(definition.workdir) if definition.workdir else "",
        volumes=volumes,
        directories=directories,
        buckets=buckets,
        block_network=closed or definition.block_network,
        allowed_cidrs=_allowed_cidrs(access),
        allowed_domains=[domains.pattern(text) for text in access.allowed_domains],
        allowed_sources=[network(text) for text in definition.inbound_cidr_allowlist],
        ports=[
            Port(port.port, port.unencrypted, port.tunnel_type == api_pb2.TUNNEL_TYPE_H2)
            for port in definition.open_ports.ports
        ],
        probe=_probe(definition),
        terminal=_terminal(definition),
        runtime=_runtime(definition.runtime),
        exit_snapshot=_wants_exit_snapshot(definition),
        memory_snapshots=definition.enable_snapshot,
    )


def _wants_exit_snapshot(definition: api_pb2.Sandbox) -> bool:
    text = definition.experimental_options_v2.get(_EXIT_SNAPSHOT, "")
    return definition.experimental_options.get(_EXIT_SNAPSHOT, False) or text.lower() == "true"


def tunnel(host: str, made: Tunnel) -> api_pb2.TunnelData:
    """A tunnel whose ends are ports of ``host``."""
    data = api_pb2.TunnelData(host=made.host or host, port=made.encrypted, container_port=made.port)
    if made.plain:
        data.unencrypted_host = host
        data.unencrypted_port = made.plain
    return data


def _refuse_missing(definition: api_pb2.Sandbox) -> None:
    wanted = {
        "S3 mounts of old clients": definition.s3_mounts,
        "static addresses (proxy=)": definition.proxy_id,
        "private IPv6 networks (i6pn)": definition.i6pn_enabled,
        "own domains (custom_domain=)": definition.custom_domain,
        "identity tokens (include_oidc_identity_token=)": definition.include_oidc_identity_token,
        "outbound policies": definition.HasField("experimental_outbound_policy")
        or definition.HasField("outbound_policy"),
    }
    for what, is_wanted in wanted.items():
        if is_wanted:
            raise UnimplementedError(f"Homeport does not give sandboxes {what} yet")
    options = {*definition.experimental_options, *definition.experimental_options_v2}
    options.discard(_EXIT_SNAPSHOT)
    if options:
        raise UnimplementedError(
            f"Homeport does not have the experimental option {min(options)!r} of sandboxes"
        )


def _volumes(mounts: Iterable[api_pb2.VolumeMount]) -> list[VolumeRef]:
    refs = [
        VolumeRef(
            mount.volume_id,
            place(mount.mount_path),
            mount.read_only,
            mount.sub_path.strip("/"),
        )
        for mount in mounts
    ]
    for ref in refs:
        if sum(other.volume_id == ref.volume_id for other in refs) > 1:
            raise InvalidError("a volume can be mounted in a sandbox only once")
    return refs


def _allowed_cidrs(access: api_pb2.NetworkAccess) -> list[str] | None:
    if access.network_access_type != api_pb2.NetworkAccess.ALLOWLIST:
        return None
    return [network(text) for text in access.allowed_cidrs]


def _probe(definition: api_pb2.Sandbox) -> ProbeRef | None:
    if not definition.HasField("readiness_probe"):
        return None
    probe = definition.readiness_probe
    return ProbeRef(
        tcp_port=probe.tcp_port,
        command=list(probe.exec_command.argv),
        interval_ms=max(1, probe.interval_ms or _PROBE_INTERVAL_MS),
    )


def _runtime(asked: str) -> str:
    """Ours for a ``runtime=`` of the client; empty = its node's choice.

    A weaker one than the node's own cannot be asked for.
    """
    if asked in ("gvisor", "runsc"):
        return GVISOR
    if asked == "vm":
        raise UnimplementedError(
            'Homeport does not run sandboxes in virtual machines (runtime="vm") yet: leave '
            'runtime= out, or ask for runtime="gvisor"'
        )
    if asked not in ("", "runc"):
        raise InvalidError(f'{asked!r} is not a runtime of sandboxes: it is "gvisor", or left out')
    return ""


def _terminal(definition: api_pb2.Sandbox) -> TerminalRef | None:
    info = definition.pty_info
    if not info.enabled:
        return None
    env = {
        "TERM": info.env_term,
        "COLORTERM": info.env_colorterm,
        "TERM_PROGRAM": info.env_term_program,
    }
    return TerminalRef(
        rows=info.winsz_rows or 24,
        columns=info.winsz_cols or 80,
        env={name: value for name, value in env.items() if value},
    )


def bucket_credentials(
    credentials: Mapping[str, api_pb2.StringMap],
) -> dict[str, dict[str, str]]:
    """Those that are sent along, by where the bucket is mounted."""
    return {place(path): dict(values.contents) for path, values in credentials.items()}


def secret_sources(
    definition: api_pb2.Sandbox,
    sources: Iterable[api_pb2.SecretSource],
    ephemeral: api_pb2.StringMap,
) -> Sequence[Source]:
    """Where its variables come from, in the caller's order: later ones override."""
    found: list[Source] = []
    for source in sources:
        if source.WhichOneof("source") == "env":
            found.append(dict(source.env.contents))
        else:
            found.append(source.secret_id)
    if not found:  # clients before 1.6
        found.extend(definition.secret_ids)
        if ephemeral.contents:
            found.append(dict(ephemeral.contents))
    if definition.environment_variables.contents:
        found.append(dict(definition.environment_variables.contents))
    return found


def tags_of(tags: Iterable[api_pb2.SandboxTag]) -> dict[str, str]:
    """Tags by name."""
    return {tag.tag_name: tag.tag_value for tag in tags}


def tag_messages(tags: Mapping[str, str]) -> list[api_pb2.SandboxTag]:
    """The same as messages."""
    return [api_pb2.SandboxTag(tag_name=name, tag_value=value) for name, value in tags.items()]


def result_message(result: SandboxResult) -> api_pb2.GenericResult:
    """How it ended."""
    return api_pb2.GenericResult(
        status=result.status,  # pyright: ignore[reportArgumentType]
        exitcode=result.exitcode,
        exception=result.exception,
    )


def metadata(record: SandboxRecord) -> api_pb2.SandboxHandleMetadata:
    """What a handle knows. A running sandbox has no result: clients look for its presence."""
    message = api_pb2.SandboxHandleMetadata(app_id=record.app_id)
    if record.result is not None:
        message.result.CopyFrom(result_message(record.result))
    return message


def info(record: SandboxRecord) -> api_pb2.SandboxInfo:
    """An entry of a list."""
    spec = record.spec
    message = api_pb2.SandboxInfo(
        id=record.sandbox_id,
        created_at=record.created_at,
        app_id=record.app_id,
        tags=tag_messages(record.tags),
        name=record.name,
        image_id=spec.image_id,
        timeout_secs=int(spec.timeout_s),
        metadata=metadata(record),
    )
    task = message.task_info
    task.id = record.task_id
    task.sandbox_id = record.sandbox_id
    task.enqueued_at = record.created_at
    task.started_at = record.started_at
    task.finished_at = record.finished_at
    if record.result is not None:
        task.result.CopyFrom(result_message(record.result))
    if spec.idle_timeout_s:
        message.idle_timeout_secs = int(spec.idle_timeout_s)
    if record.ready_at:
        message.ready_at = record.ready_at
    resources = message.resource_info
    resources.milli_cpu.value = spec.milli_cpu
    resources.memory_mb.value = spec.memory_mb
    resources.milli_cpu_max = spec.milli_cpu_max
    resources.memory_mb_max = spec.memory_mb_max
    resources.gpu_type = spec.gpu_type
    return message


def stats(usage: Usage, costs: Costs) -> api_pb2.SandboxGetStatsResponse:
    """What was used. Without a cost where there are no prices."""
    message = api_pb2.SandboxGetStatsResponse(
        num_datapoints=len(usage.cores),
        duration_hours=usage.ran_s / 3600,
        billed_cpu_core_seconds=usage.asked_core_s,
        billed_memory_gib_seconds=usage.asked_memory_gib_s,
    )
    if costs:
        message.cost = str(sum(costs.values()))
        for resource, cost in costs.items():
            message.cost_by_resource[resource] = str(cost)
    message.since.FromNanoseconds(int(usage.since * 1e9))
    message.until.FromNanoseconds(int(usage.until * 1e9))
    measured = (
        ("CPU Usage (cores)", "cores", usage.cores, message.cpu_cores),
        ("Memory Usage (GiB)", "GiB", usage.memory_gib, message.memory_gib),
    )
    for name, unit, values, summary in measured:
        if not values:
            continue
        summary.mean, summary.max = sum(values) / len(values), values[-1]
        distribution = message.percentile_stats[name]
        distribution.unit = unit
        for basis_points in _PERCENTILES:
            value = percentile(values, basis_points / 10_000)
            for target in (distribution, summary):
                target.percentiles.add(percentile_basis_points=basis_points, value=value)
    return message


def stats_group(group: Group) -> api_pb2.SandboxStatsGroup:
    """What a group of sandboxes cost (``SandboxGetTimeRangeStats``)."""
    total = sum(group.costs.values(), Decimal())
    message = api_pb2.SandboxStatsGroup(cost=float(total), cost_str=str(total))
    for resource, cost in group.costs.items():
        message.cost_by_resource[resource] = float(cost)
        message.cost_by_resource_str[resource] = str(cost)
    for name, value in group.tags.items():
        if value is None:
            message.tags[name].SetInParent()
        else:
            message.tags[name].value = value
    return message


def resource_usage(
    usage: Usage, gpus: int, gpu_type: str
) -> api_pb2.SandboxGetResourceUsageResponse:
    """What was used all in all."""
    message = api_pb2.SandboxGetResourceUsageResponse(
        cpu_core_nanosecs=int(usage.core_s * 1e9),
        mem_gib_nanosecs=int(usage.memory_gib_s * 1e9),
        gpu_nanosecs=int(usage.ran_s * gpus * 1e9),
    )
    if gpu_type:
        message.gpu_type = gpu_type
    return message


def log_batch(event: Event) -> api_pb2.TaskLogsBatch | None:
    """Output as ``SandboxGetLogs`` tells it; ``None`` for what is no output."""
    if isinstance(event, Done):
        return api_pb2.TaskLogsBatch(eof=True)
    if not isinstance(event, list) or not event:
        return None
    return api_pb2.TaskLogsBatch(
        task_id=event[0].task_id,
        entry_id=str(event[-1].id),
        items=[_log_item(entries) for entries in _in_one_line(event)],
    )


def _in_one_line(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries that go on with the line before them together with that, up to a size.

    Clients look through all of an unfinished line again for each item.
    """
    group: list[Entry] = []
    size = 0
    for entry in entries:
        if group and (
            "\n" in group[-1].data or entry.fd != group[-1].fd or size > _ITEM_CHARACTERS_MAX
        ):
            yield group
            group, size = [], 0
        group.append(entry)
        size += len(entry.data)
    if group:
        yield group


def _log_item(entries: Sequence[Entry]) -> api_pb2.TaskLogs:
    first = entries[0]
    return api_pb2.TaskLogs(
        data="".join(entry.data for entry in entries),
        file_descriptor=first.fd,  # pyright: ignore[reportArgumentType]
        timestamp=first.time_ns / 1e9,
        timestamp_ns=first.time_ns,
    )
