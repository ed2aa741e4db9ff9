"""One object of each kind, made by sound requests, for hostile ones to name."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2
from tests.conformance.harness.server import GVISOR

from homeport.rpc.methods import client_services, methods_of

Call = Callable[[str, Any], Awaitable[Any]]
"""Makes a sound request of the RPC with that name; its answer."""

METHODS = methods_of(client_services())
_IF_MISSING = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING


async def build(call: Call, *, has_node: bool) -> None:
    """Make what is not there (any more); sandboxes if there is a node to build their image."""
    app = await call("AppCreate", api_pb2.AppCreateRequest(description="world"))
    image = await call(
        "ImageGetOrCreate",
        api_pb2.ImageGetOrCreateRequest(
            app_id=app.app_id,
            image=api_pb2.Image(dockerfile_commands=["FROM scratch"]),
            builder_version="2024.10",
        ),
    )
    functions = {
        name: await _function(
            call, app.app_id, image.image_id, name, is_class=name == "C.*", is_server=name == "S"
        )
        for name in ("f", "C.*", "S")
    }
    if has_node:
        await _sandboxes(call, app.app_id)
    made = await call("ClassCreate", api_pb2.ClassCreateRequest(app_id=app.app_id))
    await call(
        "AppPublish",
        api_pb2.AppPublishRequest(
            app_id=app.app_id,
            name="one",
            app_state=api_pb2.APP_STATE_DEPLOYED,
            function_ids=functions,
            class_ids={"C": made.class_id},
        ),
    )
    await call("FunctionGet", api_pb2.FunctionGetRequest(app_name="one", object_tag="f"))
    await call("ClassGet", api_pb2.ClassGetRequest(app_name="one", object_tag="C"))
    await _map(call, functions["f"])
    await _history(call, app.app_id, functions)
    bind = api_pb2.FunctionBindParamsRequest(function_id=functions["C.*"], serialized_params=b"")
    await call("FunctionBindParams", bind)
    dict_ = await call(
        "DictGetOrCreate",
        api_pb2.DictGetOrCreateRequest(deployment_name="one", object_creation_type=_IF_MISSING),
    )
    update = api_pb2.DictEntry(key=b"key", value=b"value")
    await call("DictUpdate", api_pb2.DictUpdateRequest(dict_id=dict_.dict_id, updates=[update]))
    queue = await call(
        "QueueGetOrCreate",
        api_pb2.QueueGetOrCreateRequest(deployment_name="one", object_creation_type=_IF_MISSING),
    )
    await call("QueuePut", api_pb2.QueuePutRequest(queue_id=queue.queue_id, values=[b"value"]))
    for number, version in (("one", 1), ("two", 2)):
        volume = await call(
            "VolumeGetOrCreate",
            api_pb2.VolumeGetOrCreateRequest(
                deployment_name=number,
                object_creation_type=_IF_MISSING,
                version=api_pb2.VolumeFsVersion.ValueType(version),
            ),
        )
    id_ = volume.volume_id
    file = api_pb2.VolumePutFiles2Request.File(path="a", size=0)
    await call("VolumePutFiles2", api_pb2.VolumePutFiles2Request(volume_id=id_, files=[file]))
    await call("VolumeListFiles2", api_pb2.VolumeListFiles2Request(volume_id=id_, path="/"))
    await call("VolumeGetFile2", api_pb2.VolumeGetFile2Request(volume_id=id_, path="a"))
    await call(
        "VolumeCopyFiles2",
        api_pb2.VolumeCopyFiles2Request(volume_id=id_, src_paths=["a"], dst_path="b"),
    )
    await call("VolumeRemoveFile2", api_pb2.VolumeRemoveFile2Request(volume_id=id_, path="b"))
    await call(
        "SecretGetOrCreate",
        api_pb2.SecretGetOrCreateRequest(
            deployment_name="one", object_creation_type=_IF_MISSING, env_dict={"KEY": "value"}
        ),
    )
    shared = await call(
        "SharedVolumeGetOrCreate",
        api_pb2.SharedVolumeGetOrCreateRequest(
            deployment_name="shared", object_creation_type=_IF_MISSING
        ),
    )
    file = api_pb2.SharedVolumePutFileRequest(
        shared_volume_id=shared.shared_volume_id, path="a", data=b"data"
    )
    await call("SharedVolumePutFile", file)
    await call("WebhookTokenCreate", api_pb2.WebhookTokenCreateRequest(name="one"))
    await call(
        "BlobCreate",
        api_pb2.BlobCreateRequest(
            content_md5="A" * 22 + "==", content_sha256_base64="A" * 43 + "=", content_length=9
        ),
    )


async def _sandboxes(call: Call, app_id: str) -> None:
    image = await call(
        "ImageGetOrCreate",
        api_pb2.ImageGetOrCreateRequest(
            app_id=app_id,
            image=api_pb2.Image(dockerfile_commands=["FROM debian:bookworm-slim"]),
            builder_version="2024.10",
        ),
    )
    wait = api_pb2.ImageJoinStreamingRequest(image_id=image.image_id, timeout=100)
    await call("ImageJoinStreaming", wait)
    for name in ("SandboxCreate", "SandboxCreateV2"):
        request = METHODS[name].request(app_id=app_id)
        _define(request.definition, image.image_id)
        made = await call(name, request)
        if GVISOR:
            await _memory_snapshot(call, made.sandbox_id, is_v2=name.endswith("V2"))
    request = api_pb2.PersistentSandboxCreateRequest(app_id=app_id)
    _define(request.definition, image.image_id)
    id_ = (await call("PersistentSandboxCreate", request)).persistent_sandbox_id
    for name in ("PersistentSandboxGet", "PersistentSandboxResume", "PersistentSandboxTerminate"):
        await call(name, METHODS[name].request(persistent_sandbox_id=id_))


def _define(sandbox: api_pb2.Sandbox, image_id: str) -> None:
    sandbox.image_id = image_id
    sandbox.entrypoint_args.extend(["sleep", "5"])
    sandbox.timeout_secs = 60
    sandbox.enable_snapshot = GVISOR


async def _memory_snapshot(call: Call, sandbox_id: str, *, is_v2: bool) -> None:
    """Only gVisor's sandboxes have them."""
    begun = await call("SandboxSnapshot", api_pb2.SandboxSnapshotRequest(sandbox_id=sandbox_id))
    which = {"snapshot_id": begun.snapshot_id}
    await call("SandboxSnapshotWait", api_pb2.SandboxSnapshotWaitRequest(timeout=50, **which))
    await call("SandboxSnapshotGet", api_pb2.SandboxSnapshotGetRequest(**which))
    name = "SandboxRestoreV2" if is_v2 else "SandboxRestore"
    await call(name, METHODS[name].request(**which))


async def _function(
    call: Call, app_id: str, image_id: str, name: str, *, is_class: bool, is_server: bool
) -> str:
    function = api_pb2.Function(
        module_name="world",
        function_name=name,
        image_id=image_id,
        function_type=api_pb2.Function.FUNCTION_TYPE_FUNCTION,
        is_class=is_class,
        is_server=is_server,
    )
    if is_server:
        function.http_config.port = 8000
    request = api_pb2.FunctionCreateRequest(app_id=app_id, function=function)
    return (await call("FunctionCreate", request)).function_id


async def _history(call: Call, app_id: str, functions: Mapping[str, str]) -> None:
    """What was called, in this hour and the one before."""
    hour = int(time.time()) // 3600 * 3600
    span = {"since": Timestamp(seconds=hour - 3600), "until": Timestamp(seconds=hour + 3600)}
    of_f, of_s = {"function_id": functions["f"], **span}, {"function_id": functions["S"], **span}
    await call("AppGetTimeRangeStats", api_pb2.AppGetTimeRangeStatsRequest(app_id=app_id, **span))
    for name in ("FunctionGetTimeRangeStats", "FunctionGetMetrics"):
        await call(name, getattr(api_pb2, f"{name}Request")(**of_f))
    await call("FunctionCallCount", api_pb2.FunctionCallCountRequest(bucket_secs=60, **of_f))
    for name in ("ServerGetTimeRangeStats", "ServerGetMetrics"):
        await call(name, getattr(api_pb2, f"{name}Request")(**of_s))
    await call("ServerCountRequests", api_pb2.ServerCountRequestsRequest(bucket_secs=60, **of_s))
    info = api_pb2.MetricsGetInfoRequest
    of_functions = info(target_type=info.METRICS_TARGET_TYPE_FUNCTION, **span)
    await call("MetricsGetInfo", of_functions)
    for name, of in (("FunctionCallFetch", "f"), ("ServerRequestFetch", "S")):
        request = METHODS[name].request
        tail, time_range = request.Tail(count=10), request.Range(limit=10, **span)
        await call(name, request(function_id=functions[of], tail=tail))
        await call(name, request(function_id=functions[of], range=time_range))
    of_app = {"app_id": app_id, **span}
    await call("AppFetchLogs", api_pb2.AppFetchLogsRequest(limit=10, **of_app))
    await call("AppCountLogs", api_pb2.AppCountLogsRequest(bucket_secs=60, **of_app))
    await call("SandboxGetTimeRangeStats", api_pb2.SandboxGetTimeRangeStatsRequest(**of_app))


async def _map(call: Call, function_id: str) -> None:
    for kind in (api_pb2.FUNCTION_CALL_TYPE_MAP, api_pb2.FUNCTION_CALL_TYPE_UNARY):
        item = api_pb2.FunctionPutInputsItem(
            idx=0, input=api_pb2.FunctionInput(args=b"", data_format=api_pb2.DATA_FORMAT_PICKLE)
        )
        await call(
            "FunctionMap",
            api_pb2.FunctionMapRequest(
                function_id=function_id, function_call_type=kind, pipelined_inputs=[item]
            ),
        )
